"""Offline: interactions -> dataset; elastic model; trainer; evaluator."""
