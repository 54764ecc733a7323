"""What a request is expected to take: the queue and the costs that a depth is chosen by."""

from typing import NamedTuple

from fathom.runtime.batcher import Batcher
from fathom.runtime.depth_zero import DepthZero
from fathom.runtime.prefix_cache import CacheHits
from fathom.runtime.runner import BatchItem, BatchResult
from fathom.runtime.shares import Client


class BatcherEstimates(NamedTuple):
    """``selector.chooser.Estimates`` of one request, given what is cached of its ``items`` newest items.

    ``zero``: what answers at depth 0, None where that is not served. ``runs``: as how many requests it counts.
    ``behind``: see ``Estimates``.
    """

    batcher: Batcher[BatchItem, BatchResult]
    zero: DepthZero | None
    hits: CacheHits
    items: int
    now_s: float
    deadline_s: float
    client: Client
    runs: int = 1
    behind: bool = False

    @property
    def time_s(self) -> float:
        return self.deadline_s - self.now_s

    def queue_s(self, depth: int) -> float:
        if not depth:
            return 0.0
        length = self._length(depth)
        return self.batcher.queue_s(
            depth, length, self.runs, now_s=self.now_s, deadline_s=self.deadline_s, client=self.client
        )

    @property
    def care(self) -> float:
        return self.batcher.care(self.now_s)

    def cost_s(self, depth: int, *, care: float = 1.0) -> float:
        if self.zero is not None and not depth:
            return self.zero.cost_s
        return self.batcher.p99_s(depth, self._length(depth), self.runs, care=care)

    def may_probe(self, depth: int) -> bool:
        if self.zero is not None and not depth:
            return self.zero.may_try(self.now_s, self.time_s)
        return self.batcher.may_probe(depth, self._length(depth), now_s=self.now_s, time_s=self.time_s)

    def _length(self, depth: int) -> int:
        return self.hits.at(depth).length(self.items)
