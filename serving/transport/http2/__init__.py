"""gRPC over HTTP/2 in the event loop itself, without gRPC's core and its threads (RFC 9113; PROTOCOL-HTTP2 of gRPC)."""
