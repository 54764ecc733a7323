"""A server by hand that holds a model for each depth: python -m ... FOLDER, as ``four_models`` writes it.

Plain onnxruntime, numpy and grpc.aio. ``models.json`` names the engine files of each depth, which run one after the
other, and its table of item vectors; what several depths name is opened once.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fathom.benchmarks.peer_servers.bare_grpc import serve
from fathom.protos.fathom.v1 import recommender_pb2 as pb

MODELS = "models.json"
K = 10


class FourModels:
    """The models of a folder."""

    def __init__(self, folder: Path) -> None:
        named = json.loads((folder / MODELS).read_bytes())
        engines = {name for model in named["depths"].values() for name in model["engines"]}
        self._engines = {name: _opened(folder / name) for name in engines}
        self._tables = {name: np.load(folder / name) for name in {model["table"] for model in named["depths"].values()}}
        self._models = {int(depth): model for depth, model in named["depths"].items()}
        self._ids: list[str] = named["ids"]
        self._index = {item: index for index, item in enumerate(self._ids)}
        self._longest: int = named["longest"]

    def user(self, depth: int, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """The user vector (width,) of a history (length,) of item indices."""
        newest, model = items[-self._longest :], self._models[depth]
        feeds: dict[str, Any] = {
            "items": newest[None] + 1,
            "item_vectors": self._tables[model["table"]][newest][None],
        }
        for name in model["engines"][:-1]:
            feeds["hidden_in"] = self._run(name, "hidden_out", feeds)
        user: NDArray[np.float32] = self._run(model["engines"][-1], "user_vector", feeds)[0]
        return user

    def answer(self, request: pb.RecommendRequest) -> pb.RecommendResponse:
        """The best items that the history does not have."""
        seen = np.array([self._index[item] for item in request.item_ids], np.int64)
        scores = self._tables[self._models[request.depth]["table"]] @ self.user(request.depth, seen)
        scores[seen] = -np.inf
        best = np.argpartition(-scores, K)[:K]
        best = best[np.argsort(-scores[best], kind="stable")]
        items = [pb.Item(id=self._ids[item], score=scores[item]) for item in best.tolist()]
        return pb.RecommendResponse(items=items, depth=request.depth)

    def _run(self, name: str, output: str, feeds: dict[str, Any]) -> Any:
        engine = self._engines[name]
        return engine.run([output], {each.name: feeds[each.name] for each in engine.get_inputs()})[0]


def _opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    asyncio.run(serve(FourModels(Path(sys.argv[1])).answer))
