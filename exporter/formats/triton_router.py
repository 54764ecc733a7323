"""The Triton model that picks a request's depth and asks the segments up to it. Copied by ``triton.py``.

Inputs and outputs are those of its config.pbtxt: ``item_ids``, oldest first, and when known ``timestamps``; ``k``, 10
by default; ``depth``, to run exactly that one. Where no item is known the answer is what is popular. It decides,
filters and searches with the code of Fathom's own server, so the answers are the same; deadlines, queues and batches
are Triton's.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # a part of Triton
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import RequestError
from fathom.runtime.bundle import Bundle
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import Indices, ItemFilter, Scores
from fathom.selector.choice import DepthRequest
from fathom.selector.chooser import DepthChooser

DEFAULT_K = 10
LARGEST_K = 1_000


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle for everything but its engines."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self._bundle = Bundle.open(folder / "bundle")
        self._segments = json.loads((folder / "segments.json").read_bytes())
        self._profile = DeviceProfile.model_validate_json((folder / "profile.json").read_bytes())
        served = self._bundle.manifest.served_depths
        at_share = self._bundle.complexity.at_share
        self._chooser = DepthChooser(self._bundle.certificate, served, policy="auto", alpha=0.01, at_share=at_share)
        self._retriever = open_retriever(self._bundle)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer, or one error, for each."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        try:
            return triton.InferenceResponse(self._answer(request))
        except RequestError as error:
            return triton.InferenceResponse([], triton.TritonError(str(error), triton.TritonError.INVALID_ARG))

    def _answer(self, request: Any) -> list[Any]:
        index, manifest = self._bundle.catalogue.index, self._bundle.manifest
        given = [index.get(name.decode(errors="replace"), -1) for name in _input(request, "item_ids")]
        seen = np.array(given, np.int64)
        known = seen >= 0
        seen = seen[known]
        depth, count = _input(request, "depth"), _input(request, "k")
        if not seen.size and (self._bundle.counting is None or (depth is not None and depth[0])):
            raise RequestError("no item of the history is in the catalogue")
        times = _input(request, "timestamps")
        if times is not None and len(times) != len(given):
            raise RequestError(f"timestamps has {len(times)} values for {len(given)} items; send one per item, or none")
        timestamps = None if times is None else times[known][-manifest.model.max_history :]
        items = seen[-manifest.model.max_history :]
        k = DEFAULT_K if count is None else int(count[0])
        if not 1 <= k <= LARGEST_K:
            raise RequestError(f"k is {k}, at least 1 and at most {LARGEST_K}")
        fixed, inspect = None if depth is None else int(depth[0]), partial(self._bundle.inspect, items, timestamps)
        choice = self._chooser.choose(DepthRequest(self._profile, items, inspect, fixed))
        keep = ItemFilter(exclude=seen)
        best, scores = self._best(items, timestamps, choice.depth, min(k, len(index)), keep)
        names = np.array([self._bundle.catalogue.ids[item].encode() for item in best], dtype=np.object_)
        return [
            triton.Tensor("recommended", names),
            triton.Tensor("scores", scores),
            triton.Tensor("depth_used", np.array([choice.depth], np.int32)),
            triton.Tensor("why", np.array([choice.why.encode()], dtype=np.object_)),
        ]

    def _best(
        self, items: Indices, timestamps: NDArray[np.int64] | None, depth: int, k: int, keep: ItemFilter
    ) -> tuple[Indices, Scores]:
        """The k best items and their scores: counting alone at depth 0, else the network with its part of counting."""
        counting, info = self._bundle.counting, self._bundle.manifest.counting
        if counting is not None and not depth:
            return counting.best(items, k, keep)
        bonus = None
        if counting is not None and info is not None and info.weights[depth]:
            counted, shares = counting.shares(items)
            bonus = counted, np.float32(info.weights[depth]) * shares
        user = self._run(items[None] + 1, None if timestamps is None else timestamps[None], depth)
        return self._retriever.search(user, [k], [keep], [bonus])[0]

    def _run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """The user vector: the segments up to a depth, one model after the other."""
        tensors: dict[str, NDArray[Any]] = {"items": items, "item_vectors": self._bundle.vectors.padded(items)}
        if self._bundle.manifest.model.uses_timestamps:
            tensors["timestamps"] = np.zeros_like(items) if timestamps is None else timestamps
        *passed, last = self._bundle.manifest.depths[depth].segments
        for file in (*passed, last):
            output = "user_vector" if file == last else "hidden_out"
            model, names = self._segments[file]
            inputs = [triton.Tensor(name, tensors[name]) for name in names]
            asked = triton.InferenceRequest(model_name=model, requested_output_names=[output], inputs=inputs)
            response = asked.exec()
            if response.has_error():
                raise triton.TritonModelException(response.error().message())
            found: NDArray[np.float32] = triton.get_output_tensor_by_name(response, output).as_numpy()
            tensors["hidden_in"] = found
        return found


def _input(request: Any, name: str) -> Any:
    """An input as numpy, None where it is not given."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
