"""All subsets of layers, measured: the truth that methods are graded by."""
