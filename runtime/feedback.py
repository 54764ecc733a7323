"""Second runs: some requests are run at other depths too, to see whether the certificate holds or what else would."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fathom.errors import OverloadError, UnavailableError
from fathom.runtime.batcher import Batcher
from fathom.runtime.item_filter import Indices
from fathom.runtime.prefix_cache import MISS
from fathom.runtime.runner import BatchItem, BatchResult
from fathom.selector.certificate import TOP
from fathom.selector.choice import AgreementCheck

#: Requests that may wait for their second run.
MOST_WAITING = 64

#: The best items for a request at depth 0.
Count = Callable[[BatchItem], Indices]

log = logging.getLogger("fathom.runtime")


class _SecondRun(NamedTuple):
    """A request that was answered at ``depth``, the items that it was given, and what they are to be compared with."""

    work: BatchItem
    depth: int
    given: Indices
    check: AgreementCheck


class Feedback:
    """Runs a ``share`` of what it is offered again, one at a time, whenever the engine has nothing else to do.

    ``count``: answers at depth 0.
    """

    def __init__(self, batcher: Batcher[BatchItem, BatchResult], share: float, count: Count) -> None:
        self._batcher = batcher
        self._share = share
        self._count = count
        self._random = random.Random(0)
        self._waiting: asyncio.Queue[_SecondRun] = asyncio.Queue(MOST_WAITING)
        self._task = asyncio.create_task(self._run())

    @property
    def waiting(self) -> int:
        """Requests that wait for their second run."""
        return self._waiting.qsize()

    def offer(self, work: BatchItem, depth: int, given: Indices, check: AgreementCheck) -> None:
        """Perhaps note a request that was answered at ``depth``; what finds no room is forgotten."""
        monitor = check.monitor
        monitor.count(depth)
        if work.k < TOP or not monitor.second_runs(depth):
            return
        if self._random.random() >= self._share or self._waiting.full():
            return
        if monitor.distinct.add(work.ids.tobytes()):
            self._waiting.put_nowait(_SecondRun(work, depth, given[:TOP], check))

    def close(self) -> None:
        """Stop at once."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            noted = await self._waiting.get()
            try:
                await self._compare(noted)
            except (OverloadError, UnavailableError):
                continue
            except Exception:
                log.exception("feedback: a second run could not be compared; feedback goes on")

    async def _compare(self, noted: _SecondRun) -> None:
        monitor, deepest = noted.check.monitor, noted.check.deepest
        # Asked again: an alarm may have been raised while it waited.
        depths = monitor.second_runs(noted.depth)
        if not depths:
            return
        found = {noted.depth: noted.given}
        for depth in depths:
            found[depth] = await self._best(noted.work, depth)
        best = found.pop(deepest)
        if not len(best):
            return
        agreements = [len(np.intersect1d(other, best, assume_unique=True)) / len(best) for other in found.values()]
        if (outcome := monitor.add(agreements)) is not None:
            log.warning("%s", outcome)

    async def _best(self, work: BatchItem, depth: int) -> Indices:
        await self._batcher.idle()
        again = work._replace(k=TOP, hit=MISS)
        if not depth:
            return self._count(again)
        result, _ = await self._batcher.run(again, depth=depth, length=len(again.ids), arrival_s=time.monotonic())
        return result.indices
