"""Builds the index of a catalogue with FAISS, and finds how far a search by it has to look."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import optional
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_index import ItemIndex
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import MOST_CANDIDATES, IndexKind, SearchLevel
from fathom.runtime.retriever import FlatRetriever

Floats = NDArray[np.float32]

#: Inverted lists, for each root of the number of items; where a list is searched quickly, fewer.
LISTS_PER_ROOT: dict[IndexKind, int] = {"ivf": 4, "pq": 2, "hnsw": 0}
#: Each list is trained on so many items, in so many rounds; product quantizers on so many in all.
TRAINED_EACH, ROUNDS, TRAINED = 64, 10, 65_536
#: Links of an item in a graph (twice as many at its bottom), and how many are looked at to choose them.
LINKS, LINKS_LOOKED_AT = 24, 100
#: Bits of each component in a product quantizer.
BITS = 4
#: Vectors that are added at a time.
ADDED = 65_536
#: Numbers of wanted items that the effort is found for.
LEVELS = (20, 50, 100, 300, 1_000)
#: Candidates for each item that is wanted.
EXPANSIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
#: The longest queue of a search in a graph.
LONGEST_QUEUE = 4_096
#: Of what recall may lack, the share that a level leaves, because it is found with other users than it is judged by.
LEFT = 0.75
#: Items of a list that are looked at in the time that one candidate takes.
LOOKED_AT: dict[IndexKind, float] = {"ivf": 40, "pq": 100, "hnsw": 1}
_EFFORTS = sorted({math.ceil(1.15**step) for step in range(100)})
#: User vectors that are searched for at a time.
BATCH = 32


@dataclass(frozen=True)
class BuiltIndex:
    """An index as FAISS has it, and how it is to be searched: see ``RetrievalInfo``."""

    index: Any
    kind: IndexKind
    lists: int
    levels: tuple[SearchLevel, ...]

    def searched(self) -> ItemIndex:
        """As a server searches it."""
        return ItemIndex(self.index, self.kind, self.levels)

    def to_bytes(self) -> bytes:
        """The file."""
        data: bytes = optional("faiss", "faiss").serialize_index(self.index).tobytes()
        return data


def default_lists(kind: IndexKind, items: int) -> int:
    """A power of two near a multiple of the root of the number of items, each list with enough to be trained on."""
    if kind == "hnsw":
        return 0
    wanted = 1 << round(math.log2(LISTS_PER_ROOT[kind] * math.sqrt(items)))
    return max(1, min(wanted, items // TRAINED_EACH))


def build_index(
    vectors: ItemVectors,
    kind: IndexKind,
    *,
    lists: int,
    threads: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Any:
    """FAISS's index of item vectors. ``lists``: of ivf and pq. With one thread the same every time."""
    faiss = optional("faiss", "faiss")
    faiss.omp_set_num_threads(threads)
    index = _empty(faiss, kind, vectors.width, lists)
    n = len(vectors)
    sample = np.random.default_rng(0).permutation(n)[: max(lists * TRAINED_EACH, TRAINED)]
    progress(f"{kind}: training on {len(sample):,} items")
    index.train(vectors.take(np.sort(sample)))
    for low in range(0, n, ADDED):
        index.add(vectors.take(np.arange(low, min(low + ADDED, n))))
        progress(f"{kind}: {min(low + ADDED, n):,} of {n:,} items")
    return index


def _empty(faiss: Any, kind: IndexKind, width: int, lists: int) -> Any:
    metric, byte = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, byte, LINKS, metric)
        index.hnsw.efConstruction = LINKS_LOOKED_AT
        return index
    coarse = faiss.IndexFlatIP(width)
    if kind == "ivf":
        index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, byte, metric, False)
    else:
        index = faiss.IndexIVFPQFastScan(coarse, width, lists, width, BITS, metric)
        index.by_residual = False
        index.pq.cp.min_points_per_centroid = 1
    # FAISS keeps no reference of its own.
    coarse.this.disown()
    index.own_fields = True
    index.cp.spherical = True
    index.cp.niter = ROUNDS
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED_EACH
    return index


def tune(index: Any, kind: IndexKind, lists: int, vectors: ItemVectors, users: Floats, min_recall: float) -> BuiltIndex:
    """How the index is to be searched, to find enough of the best items of ``users`` (m, width) with the least work.

    Enough: ``min_recall`` of them and a little more. Where nothing suffices, everything that can be done.
    """
    aim = 1 - LEFT * (1 - min_recall)
    wanted = [each for each in LEVELS if each <= len(vectors)] or [len(vectors)]
    truth = best_items(FlatRetriever(vectors), users, wanted[-1])
    most = LONGEST_QUEUE if kind == "hnsw" else lists

    def enough(level: SearchLevel) -> bool:
        found = ItemIndex(index, kind, [level]).candidates(users, level)
        return recall_of(found, truth[:, : level.wanted]) >= aim

    levels = [SearchLevel(wanted=1, effort=1, candidates=1)]
    for each in wanted:
        # The queue of a graph is as long as its candidates are many in any case: more of them are never less work.
        expansions = EXPANSIONS[1:2] if kind == "hnsw" else EXPANSIONS
        counts = sorted(
            {max(each * more, levels[-1].candidates) for more in expansions if each * more <= MOST_CANDIDATES}
        )
        efforts = [effort for effort in _EFFORTS if levels[-1].effort <= effort < most] + [most]
        levels.append(_cheapest(each, counts, efforts, len(vectors) / max(lists, 1) / LOOKED_AT[kind], enough))
    return BuiltIndex(index, kind, lists, tuple(levels[1:]))


def _cheapest(
    wanted: int,
    counts: Sequence[int],
    efforts: Sequence[int],
    effort_cost: float,
    enough: Callable[[SearchLevel], bool],
) -> SearchLevel:
    """The level of the least work that finds enough; the greatest where none does.

    ``counts``, ``efforts``: of candidates, and what may be tried, ascending. ``effort_cost``: of one, in candidates.
    """
    best, least = SearchLevel(wanted=wanted, effort=efforts[-1], candidates=counts[-1]), math.inf
    for count in counts:
        level = SearchLevel(wanted=wanted, effort=efforts[-1], candidates=count)
        if not enough(level):
            continue
        low, high = 0, len(efforts) - 1
        while low < high:
            middle = (low + high) // 2
            if enough(level.model_copy(update={"effort": efforts[middle]})):
                high = middle
            else:
                low = middle + 1
        work = count + effort_cost * efforts[low]
        if work >= least:
            break
        best, least = level.model_copy(update={"effort": efforts[low]}), work
    return best


def best_items(flat: FlatRetriever, users: Floats, k: int) -> NDArray[np.int64]:
    """The k best items of each user vector (m, width), of all: (m, k)."""
    found = []
    for low in range(0, len(users), BATCH):
        some = users[low : low + BATCH]
        found += [items for items, _ in flat.search(some, [k] * len(some), [ItemFilter()] * len(some))]
    return np.stack(found)


def recall_of(found: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """The share of the best items (m, k) that are among those that were found (m, any), the mean over rows."""
    found = np.sort(found, axis=1)
    places = [some.searchsorted(items) for some, items in zip(found, best, strict=True)]
    return float(np.mean(np.take_along_axis(found, np.minimum(places, found.shape[1] - 1), axis=1) == best))
