"""The engines and the search of a bundle with nothing around them: what all these servers answer with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, BatchResult, Runner

K = 10


class Asked(NamedTuple):
    """A request: the ids of a history, oldest first, all of them known; its depth, and how many items it wants."""

    item_ids: Sequence[str]
    depth: int
    k: int = K


class Recommended(NamedTuple):
    """Its answer, the best item first."""

    item_ids: list[str]
    scores: list[float]


class Recommender:
    """Belongs to one thread. The engine sorts a batch by length and cuts it as it does for Fathom."""

    def __init__(self, bundle: Bundle) -> None:
        limit_blas_threads(1)
        self._ids = bundle.catalogue.ids
        self._index = bundle.catalogue.index
        self._longest = bundle.manifest.model.max_history
        catalogue = LiveCatalogue(bundle)
        engine = open_engine(bundle, threads=1, device="cpu")
        self._runner = Runner(bundle, catalogue, engine, FlatRetriever(catalogue.vectors))

    @classmethod
    def open(cls, bundle: str | Path) -> "Recommender":
        """For as long as the process lives."""
        return cls(Bundle.open(Path(bundle)))

    def run(self, asked: Sequence[Asked]) -> list[Recommended]:
        """The answers of a batch, without items of their histories."""
        found = self._runner.run([each.depth for each in asked], [self.item_of(each) for each in asked])
        return [self._recommended(each) for each in found if isinstance(each, BatchResult)]

    def item_of(self, asked: Asked) -> BatchItem:
        """What the engine needs of a request."""
        seen = np.array([self._index[item] for item in asked.item_ids], np.int64)
        return BatchItem(seen[-self._longest :] + 1, None, asked.k, ItemFilter(exclude=seen))

    def run_items(self, depth: int, items: list[BatchItem]) -> None:
        """The engine and the search alone."""
        self._runner.run([depth] * len(items), items)

    def _recommended(self, result: BatchResult) -> Recommended:
        return Recommended([self._ids[index] for index in result.indices.tolist()], result.scores.tolist())
