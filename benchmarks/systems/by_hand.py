"""What a user could write around the same engines: python -m ... BUNDLE serves them with grpc.aio, without batches.

Each request runs alone, in the event loop, at the depth that it asks for; the answer has the same items and scores.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fathom.benchmarks.systems.echo_server import serve
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, BatchResult, Runner
from fathom.serving.limits import DEFAULT_K


class ByHand:
    """An engine and a search, with nothing around them; belongs to one thread."""

    def __init__(self, bundle: Bundle) -> None:
        self._ids = bundle.catalogue.ids
        self._index = bundle.catalogue.index
        self._longest = bundle.manifest.model.max_history
        catalogue = LiveCatalogue(bundle)
        retriever = FlatRetriever(catalogue.vectors)
        self._runner = Runner(bundle, catalogue, open_engine(bundle, threads=1), retriever)

    def run(self, requests: Sequence[pb.RecommendRequest]) -> list[pb.RecommendResponse]:
        """The answers of a batch whose requests ask for one depth."""
        items = [self.item_of(each) for each in requests]
        found = self._runner.run([requests[0].depth] * len(items), items)
        depth = requests[0].depth
        return [self._response(depth, each) for each in found if isinstance(each, BatchResult)]

    def item_of(self, request: pb.RecommendRequest) -> BatchItem:
        """What the engine needs of a request."""
        seen = np.array([self._index[item] for item in request.item_ids], np.int64)
        return BatchItem(seen[-self._longest :] + 1, None, request.k or DEFAULT_K, ItemFilter(exclude=seen))

    def run_items(self, depth: int, items: list[BatchItem]) -> None:
        """The engine and the search alone."""
        self._runner.run([depth] * len(items), items)

    def _response(self, depth: int, result: BatchResult) -> pb.RecommendResponse:
        pairs = zip(result.indices.tolist(), result.scores.tolist(), strict=True)
        items = [pb.Item(id=self._ids[index], score=score) for index, score in pairs]
        return pb.RecommendResponse(items=items, depth=depth)


if __name__ == "__main__":
    with Bundle.open(Path(sys.argv[1])) as served:
        by_hand = ByHand(served)
        asyncio.run(serve(lambda request: by_hand.run([request])[0]))
