"""Benchmarks of the server, the engines and devices."""
