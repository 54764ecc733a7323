"""What a user could write for Triton around the same engines: one batching model (Python backend), without choices.

Copied into a repository by ``triton.py``; the bundle lies beside it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # a part of Triton

from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, Runner

K = 10


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open everything."""
        bundle = Bundle.open(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self._ids = [item.encode() for item in bundle.catalogue.ids]
        self._index = {item: index for index, item in enumerate(self._ids)}
        self._longest = bundle.manifest.model.max_history
        limit_blas_threads(1)
        engine = open_engine(bundle, threads=1, device="cpu")
        self._runner = Runner(bundle, LiveCatalogue(bundle), engine, FlatRetriever(bundle.vectors))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Pad the batch, run it, and search."""
        works, depths = [], []
        for request in requests:
            given = triton.get_input_tensor_by_name(request, "item_ids").as_numpy()[0]
            items = np.array([self._index[item] for item in given], np.int64)
            works.append(BatchItem(items[-self._longest :] + 1, None, K, ItemFilter(exclude=items)))
            depths.append(int(triton.get_input_tensor_by_name(request, "depth").as_numpy()[0, 0]))
        return [self._response(result) for result in self._runner.run(depths, works)]

    def _response(self, result: Any) -> Any:
        names = np.array([[self._ids[item] for item in result.indices.tolist()]], dtype=np.object_)
        outputs = [triton.Tensor("recommended", names), triton.Tensor("scores", result.scores[None])]
        return triton.InferenceResponse(outputs)
