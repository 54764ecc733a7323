"""A web page for people who look at a running server: it asks, and never changes anything."""
