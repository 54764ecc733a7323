"""Experiments about the network: its quality, its layers, its routing, its engines."""
