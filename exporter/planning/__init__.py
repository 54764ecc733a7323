"""From a LayerRanking to a DepthPlan, and the checkpoint that is trained for it."""
