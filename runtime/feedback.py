"""Second runs: some routed requests are run at the deepest depth too, to see whether the certificate still holds."""

import asyncio
import logging
import random
import time
from typing import NamedTuple

import numpy as np

from fathom.errors import OverloadError, UnavailableError
from fathom.runtime.batcher import Batcher
from fathom.runtime.item_filter import Indices
from fathom.runtime.prefix_cache import MISS
from fathom.runtime.runner import COMPARED_ITEMS, BatchItem, BatchResult
from fathom.selector.choice import AgreementCheck

#: Requests that may wait for their second run.
MOST_WAITING = 64

log = logging.getLogger("fathom.runtime")


class _SecondRun(NamedTuple):
    """A routed request, the items that it was given first, and what they are to be compared with."""

    work: BatchItem
    first: Indices
    check: AgreementCheck


class Feedback:
    """Runs a ``share`` of what it is offered again, one at a time, whenever the engine has nothing else to do."""

    def __init__(self, batcher: Batcher[BatchItem, BatchResult], share: float) -> None:
        self._batcher = batcher
        self._share = share
        self._random = random.Random(0)
        self._waiting: asyncio.Queue[_SecondRun] = asyncio.Queue(MOST_WAITING)
        self._task = asyncio.create_task(self._run())

    @property
    def waiting(self) -> int:
        """Requests that wait for their second run."""
        return self._waiting.qsize()

    def offer(self, work: BatchItem, result: BatchResult, check: AgreementCheck) -> None:
        """Perhaps note an answered request; what finds no room is forgotten."""
        if work.k < COMPARED_ITEMS or check.monitor.alarm or result.depth == check.deepest:
            return
        if self._random.random() < self._share and not self._waiting.full():
            self._waiting.put_nowait(_SecondRun(work, result.indices[:COMPARED_ITEMS], check))

    def close(self) -> None:
        """Stop at once."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            work, first, (deepest, monitor) = await self._waiting.get()
            await self._batcher.idle()
            again = work._replace(k=COMPARED_ITEMS, early_exit=None, hit=MISS)
            try:
                result, _ = await self._batcher.run(
                    again, depth=deepest, length=len(again.ids), arrival_s=time.monotonic()
                )
            except (OverloadError, UnavailableError):
                continue
            if len(result.indices):
                same = np.intersect1d(first, result.indices, assume_unique=True)
                if monitor.add(len(same) / len(result.indices)):
                    log.warning("%s", monitor.finding)
