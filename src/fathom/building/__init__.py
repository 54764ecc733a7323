"""`fathom build`: every stage from a data set to a bundle, skipped while its output is current."""
