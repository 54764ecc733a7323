"""Items added and removed under load, and what kill -9 leaves of them.

Adds 10,000 items while 200 requests/s arrive at random, removes them again, then measures without changes. Kills a
server 20 times in the middle of additions, starts it again and looks for everything that was answered.
"""

import asyncio
import os
import signal
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from fathom.benchmarks.load import open_loop
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, catalogue_ids, started
from fathom.client import AsyncClient, CatalogueItem
from fathom.errors import ConnectError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

RATE = 200.0
ITEMS, PART = 10_000, 100
KILLS = 20
QUIET_S = 15.0
SEED = 0
# Added to cosines, so that the new items are in the answers.
BOOST = 5.0
LENGTH = 20


class CatalogueTraffic:
    """Requests at random moments until it is told to stop; what has been removed is looked for in their answers."""

    def __init__(self, known: list[str]) -> None:
        random = np.random.default_rng(SEED)
        self._histories = [[known[i] for i in random.integers(len(known), size=LENGTH)] for _ in range(50)]
        #: Items that RemoveItems has said to be out.
        self.removed: set[str] = set()
        #: By phase: seconds of each answered request.
        self.seconds: dict[str, list[float]] = {"changing": [], "quiet": []}
        self.phase = "changing"
        self.statuses: Counter[str] = Counter()
        self.with_new = self.violations = 0
        self.stop = asyncio.Event()

    async def run(self, address: str) -> None:
        """Plain calls, so that nothing is tried again behind our back."""
        async with grpc.aio.insecure_channel(address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]

            def send(number: int, due_s: float) -> Coroutine[Any, Any, None]:
                return self._one(stub, number, due_s)

            await open_loop(send, RATE, stop=self.stop, seed=SEED)

    async def _one(self, stub: Any, number: int, due_s: float) -> None:
        phase, out = self.phase, set(self.removed)
        request = pb.RecommendRequest(item_ids=self._histories[number % len(self._histories)])
        try:
            answer = await stub.Recommend(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            self.statuses[error.code().name] += 1
            return
        self.statuses["OK"] += 1
        self.seconds[phase].append(time.perf_counter() - due_s)
        ids = {item.id for item in answer.items}
        self.with_new += any(id.startswith("new-") for id in ids)
        # Only those that were out before the request was sent.
        self.violations += not ids.isdisjoint(out)


def _items(first: int, count: int, known: list[str]) -> list[CatalogueItem]:
    numbers = range(first, first + count)
    return [CatalogueItem(f"new-{n}", f"New {n}", boost=BOOST, similar=(known[n % len(known)],)) for n in numbers]


async def changes(server: StartedServer, known: list[str]) -> dict[str, Any]:
    """All additions and removals under load, then as long without."""
    process, traffic = psutil.Process(server.pid), CatalogueTraffic(known)
    loading = asyncio.create_task(traffic.run(server.address))
    await asyncio.sleep(1)
    before_mb = process.memory_info().rss / 2**20
    async with AsyncClient(server.address) as client:
        begin = time.perf_counter()
        for first in range(0, ITEMS, PART):
            await client.upsert_items(_items(first, PART, known))
        added_s = time.perf_counter() - begin
        after_mb = process.memory_info().rss / 2**20
        for first in range(0, ITEMS, PART):
            ids = [f"new-{n}" for n in range(first, first + PART)]
            await client.remove_items(ids)
            traffic.removed.update(ids)
    traffic.phase = "quiet"
    await asyncio.sleep(QUIET_S)
    traffic.stop.set()
    await loading
    return {
        "statuses": dict(traffic.statuses),
        "added_per_s": round(ITEMS / added_s),
        "rss_mb": {"before": round(before_mb, 1), "after": round(after_mb, 1)},
        "answers_with_new": traffic.with_new,
        "answers_with_removed": traffic.violations,
        **{f"{phase}_ms": _times(seconds) for phase, seconds in traffic.seconds.items()},
    }


async def _add_until_killed(server: StartedServer, known: list[str], first: int, after_s: float) -> set[str]:
    """Add items until the server is gone; those whose addition was answered."""
    answered: set[str] = set()
    asyncio.get_running_loop().call_later(after_s, os.kill, server.pid, signal.SIGKILL)
    async with AsyncClient(server.address) as client:
        while True:
            items = _items(first + len(answered), 1, known)
            try:
                await client.upsert_items(items)
            except ConnectError:
                return answered
            answered.update(each.id for each in items)


async def _held(address: str) -> set[str]:
    """What a server lists."""
    held: set[str] = set()
    token, more = "", True
    async with AsyncClient(address) as client:
        while more:
            page = await client.list_items(token, size=1_000)
            held.update(each.item.id for each in page.items if not each.removed)
            token, more = page.next_page, bool(page.next_page)
    return held


def kills(bundle: Path, setting: str, known: list[str]) -> dict[str, Any]:
    """Kill a server again and again in the middle of additions."""
    random, answered, lost = np.random.default_rng(SEED), 0, 0
    expected: set[str] = set()
    for number in range(KILLS):
        with started(bundle, "--catalogue", setting) as server:
            lost += len(expected - asyncio.run(_held(server.address)))
            after_s = float(random.uniform(0.1, 1.0))
            new = asyncio.run(_add_until_killed(server, known, (number + 1) * 1_000_000, after_s))
        answered += len(new)
        expected = new
    with started(bundle, "--catalogue", setting) as server:
        lost += len(expected - asyncio.run(_held(server.address)))
    return {"kills": KILLS, "answered": answered, "lost": lost}


def _times(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.quantile(seconds, q / 100)) * 1e3, 2) for q in (50, 99)}


def measure(options: Namespace) -> Iterator[Run]:
    """Changes under load, then kills."""
    known = catalogue_ids(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        with started(options.bundle, "--catalogue", f"sqlite:{folder}/load.db") as server:
            result = asyncio.run(changes(server, known))
        result["kill_9"] = kills(options.bundle, f"sqlite:{folder}/killed.db", known)
    config = {"bundle": options.bundle.parent.name, "rate_per_s": RATE, "items": ITEMS, "part": PART}
    yield Run(config, result, SEED)


def render(run: StoredRun) -> str:
    """One paragraph."""
    result, config = run["result"], run["config"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    during, quiet, killed = result["changing_ms"], result["quiet_ms"], result["kill_9"]
    return "\n\n".join(
        [
            "## A catalogue that changes under load",
            f"{config['items']:,} items added, then removed, {config['part']} in a call, at {config['rate_per_s']:g}"
            f" requests/s: {statuses}; {result['added_per_s']:,} items added per second. Meanwhile p50"
            f" {during['p50']:.1f} ms and p99 {during['p99']:.1f} ms, against {quiet['p50']:.1f} and {quiet['p99']:.1f}"
            f" ms without. {result['answers_with_new']:,} answers held added items,"
            f" {result['answers_with_removed']:,} held one that was removed before they were asked for."
            f" Memory {result['rss_mb']['before']:.0f} MB before and {result['rss_mb']['after']:.0f} MB after the"
            f" additions. Killed {killed['kills']} times in the middle: of {killed['answered']:,} additions that were"
            f" answered, {killed['lost']:,} lost.",
        ]
    )


BENCHMARK = Benchmark(
    __doc__,
    "4 min, a bundle",
    {"bundle": Path("build/ml-100k/bundle")},
    measure,
    of_runs(render, "catalogue"),
)
