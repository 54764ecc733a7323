"""One YAML per device, and the schema that they must satisfy."""
