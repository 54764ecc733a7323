"""What a user could put around Fathom's engines instead of Fathom: one server each, python -m ... BUNDLE BATCH WAIT-MS.

Each runs in an environment of its own, with its own framework beside numpy, onnxruntime and pydantic, so nothing here
imports more of Fathom than its runtime. Where the environment has the protobuf that Fathom's messages need, a server
reads and writes those; else tensors. A server prints its port once it serves.
"""
