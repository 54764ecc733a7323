"""Online: request complexity -> depth."""
