"""An engine in ten lines of numpy, for tests and for trying the server without a trained model."""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.engines.interface import StatelessEngine
from fathom.runtime.engines.session import Device
from fathom.runtime.item_vectors import ItemVectors


class FakeEngine(StatelessEngine):
    """The user vector at depth d is the unit mean of the newest d items' vectors: deeper looks further back.

    ``on_run(batch, depth)`` is called before each run, in the engine's thread; what it raises is the engine's failure.
    """

    name = "fake"
    device: Device = "cpu"
    grows = True

    def __init__(
        self,
        vectors: ItemVectors,
        depths: Collection[int],
        *,
        on_run: Callable[[int, int], None] | None = None,
    ) -> None:
        self.depths = tuple(sorted(depths))
        self._vectors = vectors
        self._on_run = on_run

    def run(
        self,
        items: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,  # noqa: ARG002 - the interface has it
        depth: int,
    ) -> NDArray[np.float32]:
        """See ``Engine.run``; KeyError for a depth that it does not have."""
        if depth not in self.depths:
            raise KeyError(depth)
        if self._on_run is not None:
            self._on_run(len(items), depth)
        total = self._vectors.padded(items[:, -depth:]).sum(axis=1)
        return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def close(self) -> None:
        """Nothing to give back."""
