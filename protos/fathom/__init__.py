"""Namespace of the proto package."""
