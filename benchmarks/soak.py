"""A server at half of its capacity for half an hour: does it grow, does it slow down.

    python -m fathom.benchmarks.soak build/ml-100k/bundle --data build/ml-100k/dataset [--minutes 30]

A quarter each: a history, a user with one item more, a user_id after an append, a batch of three; at
random moments, at half the rate that a closed loop reaches. The last minute is no harder than the first: the server
keeps GROWS events of a user, and a history that has grown by as many begins again. Per minute: latency from the moment
a request is due, resident memory (the median of a reading per second), threads, open files. Writes results/soak.json.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.server_start import Started, started
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


async def closed_loop(traffic: Traffic, count: int) -> float:
    """Requests per second that so many callers get."""
    slots = asyncio.Semaphore(CONCURRENT)

    async def one() -> None:
        async with slots:
            await traffic.one()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - begin)


async def open_loop(traffic: Traffic, rate: float, seconds: float) -> tuple[list[float], Counter[str]]:
    """Seconds of each answered request, and how all ended."""
    rng = np.random.default_rng(SEED)
    took: list[float] = []
    ends: Counter[str] = Counter()

    async def one(due_s: float) -> None:
        try:
            await traffic.one()
            ends["OK"] += 1
            took.append(time.perf_counter() - due_s)
        except FathomError as error:
            ends[type(error).__name__] += 1

    begin, due_s = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due_s < seconds:
            due_s += rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, begin + due_s - time.perf_counter()))
            group.create_task(one(begin + due_s))
    return took, ends


async def measure(server: Started, histories: list[list[str]], minutes: int) -> dict[str, Any]:
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
        await closed_loop(traffic, PROBES)
        capacity = await closed_loop(traffic, PROBES)
        await open_loop(traffic, capacity / 2, WARM_UP_S)
        for minute in range(minutes):
            resident.clear()
            took, ends = await open_loop(traffic, capacity / 2, 60.0)
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
            print(rows[-1], flush=True)
    watching.cancel()
    third = max(1, minutes // 3)
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


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=30)
    chosen = parser.parse_args()
    dataset = Dataset.load(chosen.data)
    histories = [[dataset.item_ids[item] for item in sequence] for sequence in dataset.sequences]
    options = ("--history-max-events", str(GROWS))
    with (
        tempfile.TemporaryDirectory() as folder,
        started(chosen.bundle, *options, "--history", f"sqlite:{folder}/h.db") as server,
    ):
        result = asyncio.run(measure(server, histories, chosen.minutes))
    print({name: value for name, value in result.items() if name != "rows"})
    config = {"bundle": Bundle.open(chosen.bundle).manifest.name, "minutes": chosen.minutes, "warm_up_s": WARM_UP_S}
    print(f"stored in {save_run('soak', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
