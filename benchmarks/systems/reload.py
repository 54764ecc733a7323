"""Bundles exchanged under load: what the requests notice.

Publishes the two bundles in turn, 50 times, then damaged ones, each followed by a Reload call, while 100 requests/s
arrive at random. Every answer is compared with what its version answered alone.
"""

import asyncio
import shutil
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from fathom.benchmarks.load import open_loop
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, started
from fathom.client import AsyncClient, Reloaded
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle

RATE = 100.0
RELOADS = 50
DAMAGED = 10
HISTORIES = 20
LENGTH = 50
DEPTH = 16
SEED = 0
# Scores of one history, computed alone and in a batch.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ReloadedRequest:
    """One request: when it ended, how long it took, its status, and whether its answer is its version's own."""

    ended_s: float
    seconds: float
    status: str
    version: str
    right: bool


class ReloadTraffic:
    """Requests at random moments until it is told to stop."""

    def __init__(self, address: str, histories: list[list[str]]) -> None:
        self._address = address
        self._requests = [pb.RecommendRequest(item_ids=items, depth=DEPTH) for items in histories]
        self.expected: dict[str, list[list[float]]] = {}
        self.found: list[ReloadedRequest] = []
        self.stop = asyncio.Event()

    async def learn(self) -> None:
        """What the version that serves now answers to each history."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            answers = [await stub.Recommend(request) for request in self._requests]
        self.expected[answers[0].bundle_version] = [_scores(answer) for answer in answers]

    async def run(self) -> None:
        """Plain calls, so that nothing is tried again behind our back."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]

            def send(number: int, due_s: float) -> Coroutine[Any, Any, None]:
                return self._one(stub, number % len(self._requests), due_s)

            await open_loop(send, RATE, stop=self.stop, seed=SEED)

    async def _one(self, stub: Any, place: int, due_s: float) -> None:
        status, version, right = "OK", "", False
        try:
            answer = await stub.Recommend(self._requests[place], timeout=10)
            version = answer.bundle_version
            difference = np.subtract(_scores(answer), self.expected[version][place])
            right = bool(np.abs(difference).max() < TOLERANCE)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        now = time.perf_counter()
        self.found.append(ReloadedRequest(now, now - due_s, status, version, right))


def _scores(answer: pb.RecommendResponse) -> list[float]:
    return [item.score for item in answer.items]


def publish(bundle: Path, repository: Path, number: int, *, damaged: bool = False) -> None:
    """Copy, perhaps cut an engine in half, rename."""
    new = repository / "shop" / "new"
    shutil.copytree(bundle, new)
    if damaged:
        engine = sorted((new / "engines").iterdir())[number % 4]
        engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])
    new.rename(repository / "shop" / str(number))


async def exchanges(
    server: StartedServer, bundles: list[Path], repository: Path, histories: list[list[str]]
) -> dict[str, Any]:
    """All reloads under load, then as long without."""
    process = psutil.Process(server.pid)
    load = ReloadTraffic(server.address, histories)
    reloads: list[tuple[float, float, Reloaded]] = []
    rss_mb: list[float] = []
    async with AsyncClient(server.address) as client:
        await load.learn()
        publish(bundles[1], repository, 2)
        await client.reload()
        await load.learn()
        loading = asyncio.create_task(load.run())
        for number in range(3, 3 + RELOADS + DAMAGED):
            damaged = number >= 3 + RELOADS
            publish(bundles[0 if damaged else (number + 1) % 2], repository, number, damaged=damaged)
            begin = time.perf_counter()
            (reloaded,) = await client.reload()
            reloads.append((begin, time.perf_counter(), reloaded))
            rss_mb.append(process.memory_info().rss / 2**20)
            shutil.rmtree(repository / "shop" / str(number - (0 if reloaded.error else 1)), ignore_errors=True)
        quiet_s = time.perf_counter()
        await asyncio.sleep(15)
        load.stop.set()
        await loading
    used = {"after_10": round(rss_mb[9], 1), "after_50": round(rss_mb[RELOADS - 1], 1)}
    return _summary(load.found, reloads, quiet_s) | {"rss_mb": used}


def _summary(
    found: list[ReloadedRequest], reloads: list[tuple[float, float, Reloaded]], quiet_s: float
) -> dict[str, Any]:
    during = [each.seconds for each in found if each.ended_s < quiet_s]
    after = [each.seconds for each in found if each.ended_s >= quiet_s]
    good, refused = [r for *_, r in reloads if not r.error], [r for *_, r in reloads if r.error]
    return {
        "requests": len(found),
        "statuses": dict(Counter(each.status for each in found)),
        "versions": dict(Counter(each.version for each in found)),
        "wrong_answers": sum(not each.right for each in found if each.status == "OK"),
        "exchanged": sum(each.version != each.previous for each in good),
        "refused": len(refused),
        "refusal": refused[0].error.split("/")[-1] if refused else "",
        "reload_s": round(float(np.median([end - begin for begin, end, each in reloads if not each.error])), 2),
        "during_ms": _times(during),
        "quiet_ms": _times(after),
    }


def _times(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.quantile(seconds, q / 100)) * 1e3, 2) for q in (50, 99)}


def measure(options: Namespace) -> Iterator[Run]:
    """All exchanges, under load."""
    if len(options.bundles) != 2:
        raise ConfigError(f"{len(options.bundles)} bundles; give two that share items")
    opened = [Bundle.open(path) for path in options.bundles]
    common = sorted(set(opened[0].catalogue.ids) & set(opened[1].catalogue.ids))
    random = np.random.default_rng(SEED)
    histories = [[common[i] for i in random.choice(len(common), LENGTH, replace=False)] for _ in range(HISTORIES)]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        publish(options.bundles[0], repository, 1)
        with started(repository) as server:
            result = asyncio.run(exchanges(server, options.bundles, repository, histories))
    names = [each.manifest.name for each in opened]
    yield Run(
        {"bundles": names, "rate_per_s": RATE, "reloads": RELOADS, "damaged": DAMAGED, "depth": DEPTH}, result, SEED
    )


def render(run: StoredRun) -> str:
    """One paragraph."""
    result, config = run["result"], run["config"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    return "\n\n".join(
        [
            "## Bundles exchanged under load",
            f"{result['exchanged']} exchanges at {config['rate_per_s']:g} requests/s: {statuses};"
            f" {result['wrong_answers']} answers that were not those of the version that they named."
            f" {result['refused']} of {config['damaged']} damaged bundles refused. An exchange takes"
            f" {result['reload_s']:.1f} s; meanwhile p50 {result['during_ms']['p50']:.1f} ms"
            f" and p99 {result['during_ms']['p99']:.1f} ms, against {result['quiet_ms']['p50']:.1f} and"
            f" {result['quiet_ms']['p99']:.1f} ms without.",
        ]
    )


BENCHMARK = Benchmark(
    __doc__,
    "6 min, two bundles",
    {"bundles": (Path("build/ml-100k/bundle"), Path("build/ml-100k/other"))},
    measure,
    of_runs(render, "reload"),
)
