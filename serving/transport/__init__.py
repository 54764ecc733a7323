"""Between gRPC and the server: one contract, two transports."""
