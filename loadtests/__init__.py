"""Load on a running server, from outside."""
