"""From a checkpoint to engine files, checked against torch."""
