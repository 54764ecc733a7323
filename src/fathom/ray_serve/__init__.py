"""Fathom on Ray Serve (extra ``ray``): ``serve run deploy/ray/serve.yaml``; see docs/ray.md.

``app`` builds the application, ``add_recommender`` tells Ray's gRPC proxy the contract.
"""

from fathom.errors import optional

optional("ray.serve", "ray")

from fathom.ray_serve.application import app  # noqa: E402
from fathom.ray_serve.proxy import add_recommender  # noqa: E402

__all__ = ["add_recommender", "app"]
