"""Online experiments: who gets which arm, what became of it, and whether that is evidence. No clock, no server."""
