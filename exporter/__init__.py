"""Offline: LayerRanking -> DepthPlan -> engines -> verified Bundle."""
