"""Bundles for other runtimes: each takes a bundle and writes another."""
