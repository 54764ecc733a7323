"""Writing bundles: from a checkpoint, or from another bundle."""
