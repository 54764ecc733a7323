"""Engines: one contract, one file per backend."""
