"""Locust's users: a class for each RPC."""
