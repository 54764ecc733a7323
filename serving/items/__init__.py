"""What was said of items since their bundles were built, kept beside the server."""
