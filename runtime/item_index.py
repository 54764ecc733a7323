"""An index of item vectors, which finds candidates without scoring every item; FAISS reads and searches it."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError, optional
from fathom.runtime.bundle import Bundle
from fathom.runtime.bundle_folder import REBUILD
from fathom.runtime.item_filter import Indices, Mask
from fathom.runtime.manifest import INDEX_FILE, IndexKind, RetrievalInfo, SearchLevel

#: FAISS's own names of what each kind is.
CLASSES: dict[IndexKind, str] = {"ivf": "IndexIVFScalarQuantizer", "hnsw": "IndexHNSWSQ", "pq": "IndexIVFPQFastScan"}


class ItemIndex:
    """FAISS's index of n items by their inner product with a user vector; searched in one thread at a time.

    ``index``: of a kind of ``CLASSES``. ``levels``: ascending. ``threads``: of FAISS, for a batch.
    """

    def __init__(self, index: Any, kind: IndexKind, levels: Sequence[SearchLevel], *, threads: int = 1) -> None:
        self._faiss = optional("faiss", "faiss")
        self._index = index
        self._data: NDArray[np.uint8] | None = None
        self._kind = kind
        self._threads = threads
        self._levels = levels
        self._known: tuple[Mask | None, Any, Any] = None, None, None

    @classmethod
    def of(cls, bundle: Bundle, info: RetrievalInfo, *, threads: int = 1) -> Self:
        """That of a bundle. Raises MissingExtraError without FAISS, and BundleError for what is no such index."""
        faiss = optional("faiss", "faiss")
        file = bundle.path / INDEX_FILE
        data = np.frombuffer(bundle.read(INDEX_FILE), np.uint8)
        try:
            # The very bytes that were checked: FAISS reads them where they are, and the index holds views of them.
            index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data)))
        except (RuntimeError, MemoryError) as error:
            raise BundleError(f"{file}: not an index that this FAISS reads ({_last_line(error)}); {REBUILD}") from None
        if (words := _unlike(faiss, index, info, len(bundle.vectors), bundle.vectors.width)) is not None:
            raise BundleError(f"{file}: {words}; {REBUILD}")
        found = cls(index, info.kind, info.levels, threads=threads)
        found._data = data
        return found

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def level_for(self, wanted: float) -> SearchLevel | None:
        """The level that finds so many of the best items; None where none does."""
        return next((level for level in self._levels if level.wanted >= wanted), None)

    def candidates(self, users: NDArray[np.float32], level: SearchLevel, mask: Mask | None = None) -> Indices:
        """Items among which nearly all of the best of each user vector (rows, width) are, int64 (rows, candidates).

        ``mask``: bool (n,) or shorter, which items there are. -1, behind all others, where it finds no more.
        """
        count = min(level.candidates, len(self))
        chosen = {} if mask is None else {"sel": self._selector(mask)}
        if self._kind == "hnsw":
            asked = self._faiss.SearchParametersHNSW(efSearch=max(level.effort, count), **chosen)
        else:
            asked = self._faiss.SearchParametersIVF(nprobe=level.effort, **chosen)
        # Of this thread alone, which may be another one than last time.
        self._faiss.omp_set_num_threads(self._threads)
        _, found = self._index.search(users, count, params=asked)
        items: Indices = found
        return items

    def _selector(self, mask: Mask) -> Any:
        """What lets FAISS skip items; one is kept, because most searches share what the catalogue hides."""
        known, _, selector = self._known
        if known is not mask:
            bits = np.packbits(mask, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(bits)
            self._known = mask, bits, selector
        return selector


def _unlike(faiss: Any, index: Any, info: RetrievalInfo, items: int, width: int) -> str | None:
    """What an index has that one of these items and this kind has not."""
    if type(index).__name__ != CLASSES[info.kind]:
        return f"of another kind than {info.kind}"
    if (index.ntotal, index.d, index.metric_type) != (items, width, faiss.METRIC_INNER_PRODUCT):
        return f"an index of {index.ntotal} vectors of width {index.d} where {items} of width {width} are needed"
    if info.kind == "hnsw":
        links = faiss.vector_to_array(index.hnsw.neighbors)
        return "a link to an item that is not in the catalogue" if _outside(links, -1, items) else None
    if index.nlist != info.lists:
        return f"{index.nlist} lists where {info.lists} are needed"
    lists = index.invlists
    for number in range(info.lists):
        if size := lists.list_size(number):
            held = faiss.rev_swig_ptr(lists.get_ids(number), size)
            if _outside(held, 0, items):
                return "an item that is not in the catalogue"
    return None


def _outside(values: NDArray[Any], low: int, high: int) -> bool:
    return len(values) > 0 and (int(values.min()) < low or int(values.max()) >= high)


def _last_line(error: BaseException) -> str:
    """FAISS's words without where in its source they come from."""
    return str(error).strip().rpartition("\n")[2].rpartition("Error: ")[2][:100]
