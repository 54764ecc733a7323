"""Exact top-k by inner product, batched, with filters that belong to each request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.engines.session import Device, open_session
from fathom.runtime.item_filter import Indices, ItemFilter, Scores, passing, places_of
from fathom.runtime.item_vectors import ItemPrecision, ItemVectors

if TYPE_CHECKING:
    import onnxruntime

#: Items that are scored at a time; fewer cost more sorting.
BLOCK_ITEMS = 262_144
#: Where their vectors are made fp32 for it, 16 MB at width 64.
BLOCK_ITEMS_REDUCED = 65_536
#: The same on a GPU; fewer cost more launches.
BLOCK_ITEMS_CUDA = 4_194_304
#: Below so many items a GPU takes longer than one thread, unless a batch is large.
LEAST_ITEMS_CUDA = 10_000
#: Made by ``exporter/engines/search_graph.py``, which describes them.
GRAPHS: dict[ItemPrecision, Path] = {
    "fp32": Path(__file__).with_name("search.onnx"),
    "fp16": Path(__file__).with_name("search_fp16.onnx"),
    "int8": Path(__file__).with_name("search_int8.onnx"),
}
GRAPH_IN_CHUNKS = Path(__file__).with_name("search_in_chunks.onnx")
CHUNK = 256
_NO_MASK: NDArray[np.bool_] = np.empty((0, 0), dtype=np.bool_)
_TRUE, _FALSE = np.array(True), np.array(False)
_NO_BONUS = np.empty(0, np.int64), np.empty(0, np.float32)
_NEVER = np.float32(-np.inf)

#: Items (b,), ascending, each once, and what is added to their scores (b,), finite.
Bonus = tuple[Indices, Scores]


class _Changes(NamedTuple):
    """What is added to scores, minus infinity to hide an item: places int64 (m, 2: row, item), added float32 (m,).

    A place occurs twice only where it is hidden twice.
    """

    places: Indices
    added: Scores


class FlatRetriever:
    """Scores every item: exact, whatever the filters leave.

    ``block_items``: items that are scored at a time, at most, so that the memory of a search does not grow with the
    catalogue. A block is scored, filtered and sorted by onnxruntime in one call: the threads of a server hand the
    interpreter to each other once, and not at every step. ``device``: where large catalogues are searched; cuda holds
    their vectors on the GPU, in fp32.
    """

    def __init__(
        self,
        vectors: ItemVectors,
        *,
        block_items: int = BLOCK_ITEMS,
        threads: int = 1,
        device: Device = "cpu",
    ) -> None:
        self._n = len(vectors)
        on_gpu = device == "cuda" and self._n >= LEAST_ITEMS_CUDA
        size = block_items if vectors.precision == "fp32" else min(block_items, BLOCK_ITEMS_REDUCED)
        graph = GRAPHS[vectors.precision]
        if on_gpu:
            size, graph = BLOCK_ITEMS_CUDA, GRAPH_IN_CHUNKS
        self._session = open_session(graph.read_bytes(), graph, threads, "cuda" if on_gpu else "cpu")
        blocks = (slice(low, min(low + size, self._n)) for low in range(0, self._n, size))
        self._blocks = [_Block(self._session, vectors, block, on_gpu=on_gpu) for block in blocks]

    def search(
        self,
        users: NDArray[np.float32],
        ks: Sequence[int],
        filters: Sequence[ItemFilter],
        bonuses: Sequence[Bonus | None] | None = None,
    ) -> list[tuple[Indices, Scores]]:
        """The ``ks[i]`` best items for user vector i: (indices int64, scores float32), best first.

        ``users``: float32 (rows, width). ``bonuses``: of each row, added to its scores before they are compared. Equal
        scores: the lowest index first. Fewer than k when fewer are left.
        """
        masks = {row: mask for row, keep in enumerate(filters) if (mask := passing(keep, self._n)) is not None}
        changes = _changes([keep.exclude for keep in filters], bonuses)
        values, items = self._best(users, changes, masks, max(ks))
        # What is hidden is last, if it is there at all: usually the worst of all is not.
        every = len(values) == 0 or bool(values[:, -1].min() > _NEVER)
        if not every:
            left = np.count_nonzero(values > _NEVER, axis=1).tolist()
            ks = [min(pair) for pair in zip(ks, left, strict=True)]
        return [(items[row, :k], values[row, :k]) for row, k in enumerate(ks)]

    def _best(
        self, users: NDArray[np.float32], changes: _Changes, masks: Mapping[int, NDArray[np.bool_]], k: int
    ) -> tuple[Scores, Indices]:
        """Scores and items (rows, k) of the best, hidden ones last."""
        found = []
        for block in self._blocks:
            inside = changes if len(self._blocks) == 1 else _inside(changes, block.low, block.items)
            found.append(block.best(users, inside, masks, k))
        if len(found) == 1:
            return found[0]
        values, items = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        # Stable: equal scores stay in the order of their indices, because all parts are in that order.
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(values, order, axis=1), np.take_along_axis(items, order, axis=1)


class _Block:
    """A part of the items, from ``low`` on."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", vectors: ItemVectors, part: slice, *, on_gpu: bool
    ) -> None:
        self._session = session
        self.low = part.start
        self.items = part.stop - part.start
        self._always: dict[str, NDArray[Any]] = {}
        self._binding = None
        if on_gpu:
            import onnxruntime

            there = vectors.take(np.arange(part.start, part.stop))
            self._there = onnxruntime.OrtValue.ortvalue_from_numpy(there, "cuda", 0)
            self._binding = session.io_binding()
            self._binding.bind_ortvalue_input("vectors", self._there)
        else:
            self._always["vectors"] = vectors.rows[part]
            if vectors.scales is not None:
                self._always["scales"] = vectors.scales[part]

    def best(
        self, users: NDArray[np.float32], changes: _Changes, masks: Mapping[int, NDArray[np.bool_]], k: int
    ) -> tuple[Scores, Indices]:
        """Scores and items (rows, at most k) of the best; ``changes`` count from the first item of the block."""
        shown = _NO_MASK
        if masks:
            shown = np.ones((len(users), self.items), dtype=np.bool_)
            for row, mask in masks.items():
                shown[row] = mask[self.low : self.low + self.items]
        feeds: dict[str, NDArray[Any]] = {
            "users": users,
            "places": changes.places,
            "added": changes.added,
            "shown": shown,
            "masked": _TRUE if masks else _FALSE,
            "k": np.array([min(k, self.items)]),
            **self._always,
        }
        if self._binding is None:
            values, items = self._session.run(["values", "items"], feeds)
        else:
            for name, value in feeds.items():
                self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for name in ("values", "items"):
                self._binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(self._binding)
            values, items = self._binding.copy_outputs_to_cpu()
        return values, items + self.low if self.low else items


def _changes(excluded: Sequence[Indices], bonuses: Sequence[Bonus | None] | None) -> _Changes:
    if bonuses is None:
        places = _pairs(len(excluded), excluded)
        added = np.empty(len(places), np.float32)
        added.fill(_NEVER)
        return _Changes(places, added)
    some = [_NO_BONUS if bonus is None else bonus for bonus in bonuses]
    places = _pairs(len(excluded), [*excluded, *(items for items, _ in some)])
    added = np.empty(len(places), np.float32)
    hidden = sum(map(len, excluded))
    added[:hidden] = _NEVER
    np.concatenate([values for _, values in some], out=added[hidden:])
    # A hidden item has no bonus.
    low = hidden
    for exclude, (items, _) in zip(excluded, some, strict=True):
        added[low + places_of(exclude, items)] = _NEVER
        low += len(items)
    return _Changes(places, added)


def _pairs(rows: int, items: Sequence[Indices]) -> Indices:
    """(row, item) of every list, int64 (m, 2); the lists belong to rows 0, 1, ... and then to row 0 again."""
    sizes = [len(each) for each in items]
    pairs = np.empty((sum(sizes), 2), np.int64)
    pairs[:, 0] = 0 if rows == 1 else (np.arange(len(items)) % rows).repeat(sizes)
    np.concatenate(items, out=pairs[:, 1])
    return pairs


def _inside(changes: _Changes, low: int, width: int) -> _Changes:
    """Those of a block, counted from its first item."""
    items = changes.places[:, 1] - low
    found = (items >= 0) & (items < width)
    return _Changes(np.stack((changes.places[found, 0], items[found]), axis=1), changes.added[found])
