"""What turns histories into user vectors: the contract of all engines, and what they have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.incremental import CachedHistory, Incremental
from fathom.runtime.engines.session import Device

Opened = TypeVar("Opened")


class Engine(Protocol):
    """What turns histories into user vectors."""

    @property
    def name(self) -> str:
        """For people and metrics, as ``onnxruntime-cpu``."""
        ...

    @property
    def device(self) -> Device:
        """Where onnxruntime computes beside it: the search for items is made there."""
        ...

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that ``run`` accepts, ascending."""
        ...

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """User vectors (batch, width), unit rows.

        ``items``: int64 (batch, history) input ids, item index + 1, padded on the left with 0, at least one item a row.
        ``timestamps``: seconds, of the same shape and padding, or None when unknown; a model without them ignores them.
        """
        ...

    def run_each(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Like ``run``, each row at its own depth."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether ``run_each`` computes layers that several depths share only once."""
        ...

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """Like ``run`` at each of ``depths``, ascending, going on from what the depth before has computed."""
        ...

    @property
    def incremental(self) -> bool:
        """Whether ``run_incremental`` can be called."""
        ...

    def run_incremental(self, histories: Sequence[CachedHistory], depths: Sequence[int]) -> Incremental:
        """As ``run_each``, computing only what is not cached: user vectors, and what to cache of each row now."""
        ...

    @property
    def grows(self) -> bool:
        """Whether histories may hold items that were added to the bundle's vectors after it was opened."""
        ...

    @property
    def plan_refused(self) -> str | None:
        """Why no TensorRT plan of the bundle runs: missing, stale, foreign, broken; None: one does, or it has none."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; ``run`` must not be called afterwards."""
        ...


class BaseEngine(ABC):
    """A context manager that closes the engine."""

    plan_refused: str | None = None

    @abstractmethod
    def close(self) -> None:
        """See ``Engine.close``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StatelessEngine(BaseEngine):
    """An engine that keeps nothing between two depths or two requests: every run computes the whole history."""

    incremental = False
    mixes = False
    grows = False

    @abstractmethod
    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``."""

    def run_each(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """See ``Engine.run_each``; one run for each depth."""
        return run_apart(self.run, items, timestamps, depths)

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """See ``Engine.walk``; every depth computes the whole history again."""
        for depth in depths:
            yield self.run(items, timestamps, depth)

    def run_incremental(self, *_: object) -> Incremental:
        """Not here: see ``incremental``."""
        raise ConfigError("this engine has no incremental inference")


def run_apart(
    run: Callable[[NDArray[np.int64], NDArray[np.int64] | None, int], NDArray[np.float32]],
    items: NDArray[np.int64],
    timestamps: NDArray[np.int64] | None,
    depths: Sequence[int],
) -> NDArray[np.float32]:
    """``Engine.run_each`` with one ``run`` for each depth."""
    parts = {depth: np.flatnonzero(np.equal(depths, depth)) for depth in dict.fromkeys(depths)}
    if len(parts) == 1:
        return run(items, timestamps, depths[0])
    found = [run(items[rows], None if timestamps is None else timestamps[rows], depth) for depth, rows in parts.items()]
    users = np.empty((len(items), found[0].shape[1]), np.float32)
    users[np.concatenate(list(parts.values()))] = np.concatenate(found)
    return users


def run_in_parts(
    run: Callable[[NDArray[np.int64], NDArray[np.int64] | None, int], NDArray[np.float32]],
    items: NDArray[np.int64],
    timestamps: NDArray[np.int64] | None,
    depth: int,
    most: int,
) -> NDArray[np.float32]:
    """``Engine.run`` with one ``run`` for every ``most`` rows."""
    parts = [slice(start, start + most) for start in range(0, len(items), most)]
    return np.concatenate([run(items[part], None if timestamps is None else timestamps[part], depth) for part in parts])


def load_chains(bundle: Bundle, depths: Iterable[int], load: Callable[[str], Opened]) -> dict[int, list[Opened]]:
    """Depth -> its segments in order, each opened by ``load(file)``; what several depths share is loaded once."""
    load_once = cache(load)
    return {depth: [load_once(name) for name in bundle.segments(depth)] for depth in depths}


def model_inputs(
    bundle: Bundle, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None
) -> dict[str, NDArray[Any]]:
    """What the first segment of a chain may read of histories, ids and seconds (batch, history)."""
    inputs: dict[str, NDArray[Any]] = {"items": items, "item_vectors": bundle.vectors.padded(items)}
    if bundle.manifest.model.uses_timestamps:
        inputs["timestamps"] = np.zeros_like(items) if timestamps is None else timestamps
    return inputs
