"""Generated from recommender.proto by `make protos`."""
