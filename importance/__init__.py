"""Offline: how much each layer matters -> LayerRanking."""
