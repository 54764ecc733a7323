"""Builds the index of a catalogue with FAISS, and finds how far a search by it has to look."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import optional
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_index import ItemIndex
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import IndexKind
from fathom.runtime.retriever import FlatRetriever

Floats = NDArray[np.float32]

#: Inverted lists, for each root of the number of items; each is trained on so many of them, in so many rounds.
LISTS_PER_ROOT, TRAINED_EACH, ROUNDS = 4, 64, 10
#: Links of an item in a graph (twice as many at its bottom), and how many are looked at to choose them.
LINKS, LINKS_LOOKED_AT = 24, 100
#: Components that one byte of a product quantizer stands for.
COMPONENTS_PER_BYTE = 2
#: Vectors that are added at a time.
ADDED = 65_536
#: Numbers of wanted items that the effort is found for.
LEVELS = (10, 30, 100, 300, 1_000)
#: Candidates for each item that is wanted; of all that may be asked for.
EXPANSIONS = (2, 4, 8, 16, 32, 64)
MOST_CANDIDATES = 10_000
#: The longest queue of a search in a graph.
LONGEST_QUEUE = 8_192
#: Of what recall may lack, the share that the effort leaves: it is found with other users than it is judged by.
LEFT = 0.75
_EFFORTS = sorted({math.ceil(1.15**step) for step in range(100)})
#: User vectors that are searched for at a time.
BATCH = 32


@dataclass(frozen=True)
class BuiltIndex:
    """An index as FAISS has it, and how it is to be searched: see ``RetrievalInfo``."""

    index: Any
    kind: IndexKind
    lists: int
    expansion: int
    efforts: dict[int, int]

    def searched(self) -> ItemIndex:
        """As a server searches it."""
        return ItemIndex(self.index, self.kind, self.efforts)

    def to_bytes(self) -> bytes:
        """The file."""
        faiss = optional("faiss", "faiss")
        data: bytes = faiss.serialize_index(self.index).tobytes()
        return data


def default_lists(items: int) -> int:
    """A power of two near four times the root of the number of items, with enough items for each to be trained on."""
    wanted = 1 << round(math.log2(LISTS_PER_ROOT * math.sqrt(items)))
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
    index = _empty(faiss, kind, vectors, lists)
    n = len(vectors)
    sample = np.random.default_rng(0).permutation(n)[: max(lists, 1024) * TRAINED_EACH]
    progress(f"{kind}: training on {len(sample):,} items")
    index.train(vectors.take(np.sort(sample)))
    for low in range(0, n, ADDED):
        index.add(vectors.take(np.arange(low, min(low + ADDED, n))))
        progress(f"{kind}: {min(low + ADDED, n):,} of {n:,} items")
    return index


def _empty(faiss: Any, kind: IndexKind, vectors: ItemVectors, lists: int) -> Any:
    width, metric, byte = vectors.width, faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, byte, LINKS, metric)
        index.hnsw.efConstruction = LINKS_LOOKED_AT
        return index
    coarse = faiss.IndexFlatIP(width)
    if kind == "ivf":
        index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, byte, metric, False)
    else:
        parts = width // COMPONENTS_PER_BYTE if width % COMPONENTS_PER_BYTE == 0 else width
        index = faiss.IndexIVFPQ(coarse, width, lists, parts, min(8, len(vectors).bit_length() - 1), metric)
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
    """The least candidates and efforts with which the index finds enough of the best items of ``users`` (m, width).

    Enough: ``min_recall`` of them and a little more. Where no effort suffices, the greatest.
    """
    aim = 1 - LEFT * (1 - min_recall)
    levels = [level for level in LEVELS if level <= len(vectors)] or [len(vectors)]
    truth = best_items(FlatRetriever(vectors), users, levels[-1])
    most = LONGEST_QUEUE if kind == "hnsw" else lists

    def recall(expansion: int, wanted: int, effort: int) -> float:
        count = min(expansion * wanted, len(vectors))
        found = ItemIndex(index, kind, {wanted: effort}).candidates(users, count, wanted, None)
        return recall_of(found, truth[:, :wanted])

    expansion = next((each for each in EXPANSIONS if recall(each, levels[0], most) >= aim), EXPANSIONS[-1])
    efforts: dict[int, int] = {}
    least = 1
    for wanted in levels:
        if expansion * wanted > MOST_CANDIDATES and efforts:
            break
        ladder = [effort for effort in _EFFORTS if least <= effort < most] + [most]
        low, high = 0, len(ladder) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if recall(expansion, wanted, ladder[middle]) >= aim else (middle + 1, high)
        least = efforts[wanted] = ladder[low]
    return BuiltIndex(index, kind, lists, expansion, efforts)


def best_items(flat: FlatRetriever, users: Floats, k: int) -> NDArray[np.int64]:
    """The k best items of each user vector (m, width), of all: (m, k)."""
    found = []
    for low in range(0, len(users), BATCH):
        some = users[low : low + BATCH]
        found += [items for items, _ in flat.search(some, [k] * len(some), [ItemFilter()] * len(some))]
    return np.stack(found)


def recall_of(found: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """The share of the best items (m, k) that are among those that were found (m, any), the mean over rows."""
    return float(np.mean([np.isin(best[row], found[row]).mean() for row in range(len(best))]))
