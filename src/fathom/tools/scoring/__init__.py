"""Recommendations for many users at once, without a server."""
