"""Fathom: a recommender runtime that chooses its own depth."""

__version__ = "0.1.0"
