"""What all engines have in common that keep nothing between two depths or two requests."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ConfigError
from fathom.runtime.engines.extension import History, Kept


class Afresh(ABC):
    """A part of an ``Engine``: every run starts from the history."""

    resumes = False

    @abstractmethod
    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``."""

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Generator[NDArray[np.float32], NDArray[np.intp] | None, None]:
        """See ``Engine.walk``; every depth starts from the history again."""
        for depth in depths:
            rows = yield self.run(items, timestamps, depth)
            if rows is not None:
                items, timestamps = items[rows], None if timestamps is None else timestamps[rows]

    def resume(self, histories: Sequence[History], depth: int) -> tuple[NDArray[np.float32], list[Kept]]:  # noqa: ARG002
        """Not here: see ``resumes``."""
        raise ConfigError("this engine remembers nothing of histories")
