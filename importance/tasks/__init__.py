"""What a model is for: the loss of a sample, the answer that is right, and the metrics."""
