"""Top-k by inner product, batched, with filters that belong to each request; exact where every item is scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.engines.session import Device, open_session
from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Mask, Scores, passing, places_of
from fathom.runtime.item_vectors import GrowingVectors, ItemPrecision, ItemVectors

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
#: Up to so many items a row's bonuses are an array of one number per item: in a larger catalogue most would be zeros.
DENSE_ITEMS = 16_384
#: Made by ``exporter/engines/search_graph.py``, which describes them.
GRAPHS: dict[ItemPrecision, Path] = {
    "fp32": Path(__file__).with_name("search.onnx"),
    "fp16": Path(__file__).with_name("search_fp16.onnx"),
    "int8": Path(__file__).with_name("search_int8.onnx"),
}
DENSE_GRAPH = Path(__file__).with_name("search_dense.onnx")
GRAPH_IN_CHUNKS = Path(__file__).with_name("search_in_chunks.onnx")
CHUNK = 256
_NO_MASK: NDArray[np.bool_] = np.empty((0, 0), dtype=np.bool_)
_TRUE, _FALSE = np.array(True), np.array(False)
_NEVER = np.float32(-np.inf)
_NOTHING: Scores = np.zeros((1, 1), np.float32)


class Retriever(Protocol):
    """Finds the best items for user vectors."""

    def search(
        self,
        users: NDArray[np.float32],
        ks: Sequence[int],
        filters: Sequence[ItemFilter],
        bonuses: Sequence[Bonus | None] | None = None,
        offered: Mask | None = None,
    ) -> list[tuple[Indices, Scores]]:
        """The ``ks[i]`` best items for user vector i: (indices int64, scores float32), best first.

        ``users``: float32 (rows, width). ``bonuses``: of each row, added to its scores before they are compared.
        ``offered``: bool (n,), the only items that any row may get; None: all. Masks may be shorter than the items that
        there are: those behind the end are hidden. Equal scores: the lowest index first. Fewer than k when fewer are
        left, and only then.
        """


class _Changes(NamedTuple):
    """What is added to scores, minus infinity to hide an item: places int64 (m, 2: row, item), added float32 (m,).

    A place occurs twice only where it is hidden twice.
    """

    places: Indices
    added: Scores


class FlatRetriever:
    """Scores every item: exact, whatever the filters leave.

    ``block_items``: items that are scored at a time, at most, so that the memory of a search does not grow with the
    catalogue, but for the bonuses of one with up to DENSE_ITEMS items. A block is scored, filtered and sorted by
    onnxruntime in one call: the threads of a server hand the interpreter to each other once, and not at every step.
    ``device``: where large catalogues are searched; cuda holds their vectors on the GPU, in fp32.
    """

    def __init__(
        self,
        vectors: ItemVectors,
        *,
        block_items: int = BLOCK_ITEMS,
        threads: int = 1,
        device: Device = "cpu",
    ) -> None:
        self._vectors = vectors
        n = len(vectors.rows)
        on_gpu = device == "cuda" and n >= LEAST_ITEMS_CUDA
        size = block_items if vectors.precision == "fp32" else min(block_items, BLOCK_ITEMS_REDUCED)
        graph = GRAPHS[vectors.precision]
        self._dense = not on_gpu and vectors.precision == "fp32" and n <= DENSE_ITEMS
        if self._dense:
            graph = DENSE_GRAPH
        if on_gpu:
            size, graph = BLOCK_ITEMS_CUDA, GRAPH_IN_CHUNKS
        self._session = open_session(graph.read_bytes(), graph, threads, "cuda" if on_gpu else "cpu")
        self._size = size
        self._blocks = self._cut(vectors, on_gpu=on_gpu)
        self._added: tuple[ItemVectors | None, list[_Block]] = None, []

    def search(
        self,
        users: NDArray[np.float32],
        ks: Sequence[int],
        filters: Sequence[ItemFilter],
        bonuses: Sequence[Bonus | None] | None = None,
        offered: Mask | None = None,
        *,
        added: bool = False,
    ) -> list[tuple[Indices, Scores]]:
        """See Retriever. ``added``: among the items alone that were added to a bundle's; there must be some."""
        blocks = self._all_blocks()[len(self._blocks) if added else 0 :]
        n = blocks[-1].low + blocks[-1].items
        masks = {row: mask for row, keep in enumerate(filters) if (mask := passing(keep, n)) is not None}
        # A catalogue may have grown since its graph was chosen; of a large one the added items are a small part.
        in_rows = self._dense and not added and n <= DENSE_ITEMS
        changes = _changes([keep.exclude for keep in filters], None if in_rows else bonuses)
        dense = _dense(bonuses if in_rows else None, n) if self._dense else None
        found = []
        for block in blocks:
            inside = changes if block.items == n else _inside(changes, block.low, block.items)
            found.append(block.best(users, inside, block.shown(len(users), masks, offered), max(ks), dense))
        values, items = _merged(found, max(ks))
        # What is hidden is last, if it is there at all: usually the worst of all is not.
        every = len(values) == 0 or bool(values[:, -1].min() > _NEVER)
        if not every:
            left = np.count_nonzero(values > _NEVER, axis=1).tolist()
            ks = [min(pair) for pair in zip(ks, left, strict=True)]
        return [(items[row, :k], values[row, :k]) for row, k in enumerate(ks)]

    def _all_blocks(self) -> "list[_Block]":
        """Those of the items that there are now."""
        added = self._vectors.added if isinstance(self._vectors, GrowingVectors) else None
        if added is None:
            return self._blocks
        if self._added[0] is not added:
            self._added = added, [*self._blocks, *self._cut(added, behind=len(self._vectors.rows))]
        return self._added[1]

    def _cut(self, vectors: ItemVectors, *, behind: int = 0, on_gpu: bool = False) -> "list[_Block]":
        n = len(vectors.rows)
        parts = (slice(low, min(low + self._size, n)) for low in range(0, n, self._size))
        return [_Block(self._session, vectors, part, behind=behind, on_gpu=on_gpu) for part in parts]


class _Block:
    """A part of some items, of which there are others ``behind``; ``low``: the index of its first."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", vectors: ItemVectors, part: slice, *, behind: int, on_gpu: bool
    ) -> None:
        self._session = session
        self.low = behind + part.start
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

    def shown(self, rows: int, masks: Mapping[int, Mask], offered: Mask | None) -> Mask | None:
        """Which items each row may get, (rows, items) or (1, items) for all of them; None: any."""
        common = None if offered is None else self._own(offered)[None]
        if not masks:
            return common
        shown = np.ones((rows, self.items), dtype=np.bool_)
        for row, mask in masks.items():
            shown[row] = self._own(mask)
        if common is not None:
            shown &= common
        return shown

    def _own(self, mask: Mask) -> Mask:
        part = mask[self.low : self.low + self.items]
        return part if len(part) == self.items else np.pad(part, (0, self.items - len(part)))

    def best(
        self, users: NDArray[np.float32], changes: _Changes, shown: Mask | None, k: int, dense: Scores | None
    ) -> tuple[Scores, Indices]:
        """Scores and items (rows, at most k) of the best; ``changes`` count from the first item of the block.

        ``dense``: see ``_dense``; None where the graph has no place for it.
        """
        feeds: dict[str, NDArray[Any]] = {
            "users": users,
            "places": changes.places,
            "added": changes.added,
            "shown": _NO_MASK if shown is None else shown,
            "masked": _FALSE if shown is None else _TRUE,
            "k": np.array([min(k, self.items)]),
            **self._always,
        }
        if dense is not None:
            own = dense if dense is _NOTHING else dense[:, self.low : self.low + self.items]
            feeds["bonus"] = np.ascontiguousarray(own)
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


def _merged(found: Sequence[tuple[Scores, Indices]], k: int) -> tuple[Scores, Indices]:
    """Scores and items (rows, at most k) of the best of all blocks, hidden ones last."""
    if len(found) == 1:
        return found[0]
    values, items = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    # Stable: equal scores stay in the order of their indices, because all parts are in that order.
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(items, order, axis=1)


def _changes(excluded: Sequence[Indices], bonuses: Sequence[Bonus | None] | None) -> _Changes:
    if bonuses is None:
        places = _pairs(len(excluded), excluded)
        added = np.empty(len(places), np.float32)
        added.fill(_NEVER)
        return _Changes(places, added)
    some = [NO_BONUS if bonus is None else bonus for bonus in bonuses]
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


def _dense(bonuses: Sequence[Bonus | None] | None, n: int) -> Scores:
    """What is added to each row's scores of n items, float32 (rows, n); (1, 1) where there is nothing to add."""
    if bonuses is None:
        return _NOTHING
    dense: Scores = np.zeros((len(bonuses), n), np.float32)
    for row, bonus in enumerate(bonuses):
        if bonus is not None:
            items, values = bonus
            dense[row][items] = values
    return dense


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
