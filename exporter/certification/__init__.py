"""Which requests may get which depth, and the evidence for it."""
