"""HTTP and JSON beside gRPC: the same methods, callers and limits, for browsers and curl."""
