"""Load on a server: arrivals at random moments (an open loop), or so many callers at once (a closed one)."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import count as numbers
from typing import Any

import numpy as np

from fathom.protos.fathom.v1 import recommender_pb2 as pb

#: Of requests that are made up: items of a history, and items that are asked for.
HISTORY, K = 50, 10
#: Arrivals without a pause after which the event loop gets a turn.
TURN = 64


def made_up(ids: Sequence[str], depth: int, count: int, seed: str, history: int = HISTORY) -> list[bytes]:
    """So many encoded requests with histories of random items; a seed has its own."""
    rng = random.Random(seed)
    return [
        pb.RecommendRequest(item_ids=rng.choices(ids, k=history), k=K, depth=depth).SerializeToString()
        for _ in range(count)
    ]


async def open_loop(
    send: Callable[[int, float], Coroutine[Any, Any, None] | None],
    rate: float,
    *,
    count: int | None = None,
    stop: asyncio.Event | None = None,
    seed: int = 0,
) -> None:
    """Poisson arrivals, however slow the answers are: ``count`` of them, or until ``stop``; returns when all ended.

    ``send(number, due_s)`` is called at each moment, ``due_s`` in seconds of ``time.perf_counter``; a coroutine that it
    returns becomes a task. ``rate``: arrivals per second. The same ``seed`` gives the same moments.
    """
    gaps, due_s = np.random.default_rng(seed), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in numbers() if count is None else range(count):
            if stop is not None and stop.is_set():
                return
            due_s += gaps.exponential(1 / rate)
            early_s = due_s - time.perf_counter()
            if early_s > 0 or number % TURN == 0:
                await asyncio.sleep(max(0.0, early_s))
            if (sent := send(number, due_s)) is not None:
                group.create_task(sent)


async def closed_loop(send: Callable[[int], Awaitable[object]], concurrency: int, count: int) -> float:
    """``send(number)`` for each of ``count`` requests, ``concurrency`` at a time; returns requests per second."""
    waiting = iter(range(count))

    async def caller() -> None:
        for number in waiting:
            await send(number)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return count / (time.perf_counter() - begin)
