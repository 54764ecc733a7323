"""A server at half of its capacity for half an hour: does it grow, does it slow down.

A quarter each: a history, a user with one item more, a user_id after an append, a batch of three; at
random moments, at half the rate that a closed loop reaches. The last minute is no harder than the first: the server
keeps GROWS events of a user, and a history that has grown by as many begins again. Per minute: latency from the moment
a request is due, resident memory (the median of a reading per second), threads, open files.
"""

import asyncio
import random
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from fathom.benchmarks.load import closed_loop, open_loop
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, started
from fathom.client import AsyncClient, Event, Query
from fathom.errors import FathomError
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SEED = 0
WARM_UP_S = 60.0
CONCURRENT = 16
PROBES = 1_000
GROWS = 20
LONGEST = 180


class User:
    """Somebody whose history grows: here by up to GROWS items, on the server for ever."""

    def __init__(self, user_id: str, history: list[str], rng: random.Random) -> None:
        self.user_id = user_id
        self._rng = rng
        self._items = history
        self._first = min(len(history), LONGEST)
        self._here = rng.randrange(GROWS)

    @property
    def history(self) -> list[str]:
        """It as it is now."""
        return self._items[: self._first] + self._items[: self._here]

    def grow(self) -> list[str]:
        """It with one item more."""
        self._here = (self._here + 1) % GROWS
        return self.history

    def events(self, count: int) -> list[Event]:
        """New events for the server."""
        return [Event(uuid(self._rng), self._rng.choice(self._items), number) for number in range(count)]

    async def append(self, client: AsyncClient, count: int) -> None:
        """So many events more on the server."""
        await client.append_events(self.user_id, self.events(count))


def uuid(rng: random.Random) -> str:
    """An id that does not come twice."""
    return f"{rng.getrandbits(128):032x}"


class Traffic:
    """Random requests of all users."""

    def __init__(self, client: AsyncClient, histories: list[list[str]]) -> None:
        self._client = client
        self._random = random.Random(SEED)
        users = [User(f"user-{number}", history, self._random) for number, history in enumerate(histories) if history]
        self._random.shuffle(users)
        self._turn = cycle(users)
        self._users = users

    async def prepare(self) -> None:
        """Give the server its users."""
        for user in self._users:
            await user.append(self._client, GROWS)

    async def one(self) -> None:
        """Any of the four."""
        user = next(self._turn)
        kind = self._random.randrange(4)
        if kind == 0:
            await self._client.recommend(user.history)
        elif kind == 1:
            await self._client.recommend(user.grow())
        elif kind == 2:
            await user.append(self._client, 1)
            await self._client.recommend(user_id=user.user_id)
        else:
            await self._client.recommend_many([Query(user.history[-length:]) for length in (5, 20, 50)])


async def offer(traffic: Traffic, rate: float, seconds: float) -> tuple[list[float], Counter[str]]:
    """Seconds of each answered request, and how all ended."""
    took: list[float] = []
    ends: Counter[str] = Counter()

    async def one(due_s: float) -> None:
        try:
            await traffic.one()
            ends["OK"] += 1
            took.append(time.perf_counter() - due_s)
        except FathomError as error:
            ends[type(error).__name__] += 1

    await open_loop(lambda _, due_s: one(due_s), rate, count=int(rate * seconds), seed=SEED)
    return took, ends


async def minute_by_minute(server: StartedServer, histories: list[list[str]], minutes: int) -> dict[str, Any]:
    """The capacity, then half of it, minute by minute."""
    process = psutil.Process(server.pid)
    resident: list[int] = []

    async def watch() -> None:
        while True:
            resident.append(process.memory_info().rss)
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    rows: list[dict[str, Any]] = []
    async with AsyncClient(server.address) as client:
        traffic = Traffic(client, histories)
        await traffic.prepare()
        await closed_loop(lambda _: traffic.one(), CONCURRENT, PROBES)
        capacity = await closed_loop(lambda _: traffic.one(), CONCURRENT, PROBES)
        await offer(traffic, capacity / 2, WARM_UP_S)
        for minute in range(minutes):
            resident.clear()
            took, ends = await offer(traffic, capacity / 2, 60.0)
            rows.append(
                {
                    "minute": minute,
                    "statuses": dict(ends),
                    "p50_ms": round(float(np.quantile(took, 0.5)) * 1e3, 2),
                    "p99_ms": round(float(np.quantile(took, 0.99)) * 1e3, 2),
                    "rss_mb": round(median(resident) / 2**20, 2),
                    "threads": process.num_threads(),
                    "files": process.num_fds(),
                }
            )
    watching.cancel()
    return _summary(rows, capacity)


def _summary(rows: list[dict[str, Any]], capacity: float) -> dict[str, Any]:
    third = max(1, len(rows) // 3)
    first, last = rows[:third], rows[-third:]
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(capacity / 2, 1),
        "requests": sum(sum(row["statuses"].values()) for row in rows),
        "statuses": dict(sum((Counter(row["statuses"]) for row in rows), Counter())),
        "rss_grown": round(median(row["rss_mb"] for row in last) / median(row["rss_mb"] for row in first) - 1, 4),
        "p99_ms_first_third": round(median(row["p99_ms"] for row in first), 2),
        "p99_ms_last_third": round(median(row["p99_ms"] for row in last), 2),
        "threads": sorted({row["threads"] for row in rows}),
        "files": sorted({row["files"] for row in rows}),
        "rows": rows,
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Minute by minute."""
    dataset = Dataset.load(options.data)
    histories = [[dataset.item_ids[item] for item in sequence] for sequence in dataset.sequences]
    with tempfile.TemporaryDirectory() as folder:
        store = ("--history-max-events", str(GROWS), "--history", f"sqlite:{folder}/h.db")
        with started(options.bundle, *store) as server:
            result = asyncio.run(minute_by_minute(server, histories, options.minutes))
    config = {"bundle": Bundle.open(options.bundle).manifest.name, "minutes": options.minutes, "warm_up_s": WARM_UP_S}
    yield Run(config, result, SEED)


def render(run: StoredRun) -> str:
    """One paragraph."""
    result = run["result"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    rows = result["rows"]
    return "\n\n".join(
        [
            "## Half an hour at half of the capacity",
            f"{run['config']['minutes']} minutes, {result['offered_per_s']:,.0f} calls/s of four kinds: {statuses}."
            f" Resident memory from {rows[0]['rss_mb']:.1f} to {rows[-1]['rss_mb']:.1f} MB"
            f" ({result['rss_grown']:+.1%}); p99 {result['p99_ms_first_third']:.1f} ms in the first third,"
            f" {result['p99_ms_last_third']:.1f} ms in the last (medians over minutes); threads"
            f" {_span(result['threads'])}, open files {_span(result['files'])}.",
        ]
    )


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


BENCHMARK = Benchmark(
    __doc__,
    "35 min, the bundle's data",
    {"bundle": Path, "--data": Path, "--minutes": 30},
    measure,
    of_runs(render, "soak"),
)
