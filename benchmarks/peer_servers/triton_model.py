"""What a user could write for Triton around the same engines: one batching model (Python backend), without choices.

Copied into a repository by ``triton_server.write_repository``; the bundle lies beside it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # a part of Triton

from fathom.benchmarks.peer_servers.recommender import Asked, Recommended, Recommender


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open everything."""
        self._recommender = Recommender.open(Path(args["model_repository"]) / args["model_version"] / "bundle")

    def execute(self, requests: list[Any]) -> list[Any]:
        """The answers of a batch."""
        return [_response(each) for each in self._recommender.run([_asked(request) for request in requests])]


def _asked(request: Any) -> Asked:
    items, depth = (triton.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("item_ids", "depth"))
    return Asked([item.decode() for item in items], int(depth[0]))


def _response(found: Recommended) -> Any:
    names = np.array([[item.encode() for item in found.item_ids]], dtype=np.object_)
    scores = np.array([found.scores], np.float32)
    return triton.InferenceResponse([triton.Tensor("recommended", names), triton.Tensor("scores", scores)])
