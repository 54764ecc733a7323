"""Bundles exchanged under load: what the requests notice.

    python -m fathom.benchmarks.reload build/ml-100k/bundle build/routing/ml-1m-seed-0/bundle

Publishes the two bundles in turn, 50 times, then damaged ones, each followed by a Reload call, while 100 requests/s
arrive at random. Every answer is compared with what its version answered alone. Writes results/reload.json.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.server_start import Started, started
from fathom.client import AsyncClient, Reloaded
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle, read_manifest

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
class Noticed:
    """One request: when it ended, how long it took, its status, and whether its answer is its version's own."""

    ended_s: float
    seconds: float
    status: str
    version: str
    right: bool


class Load:
    """Requests at random moments until it is told to stop."""

    def __init__(self, address: str, histories: list[list[str]]) -> None:
        self._address = address
        self._requests = [pb.RecommendRequest(item_ids=items, depth=DEPTH) for items in histories]
        self.expected: dict[str, list[list[float]]] = {}
        self.found: list[Noticed] = []
        self.stop = asyncio.Event()

    async def learn(self) -> None:
        """What the version that serves now answers to each history."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            answers = [await stub.Recommend(request) for request in self._requests]
        self.expected[answers[0].bundle_version] = [_scores(answer) for answer in answers]

    async def run(self) -> None:
        """Plain calls, so that nothing is tried again behind our back."""
        random = np.random.default_rng(SEED)
        begin, due_s = time.perf_counter(), 0.0
        async with grpc.aio.insecure_channel(self._address) as channel, asyncio.TaskGroup() as group:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            number = 0
            while not self.stop.is_set():
                due_s += random.exponential(1 / RATE)
                await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - begin)))
                group.create_task(self._one(stub, number % len(self._requests), begin + due_s))
                number += 1

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
        self.found.append(Noticed(now, now - due_s, status, version, right))


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


async def measure(server: Started, bundles: list[Path], repository: Path, histories: list[list[str]]) -> dict[str, Any]:
    """All reloads under load, then as long without."""
    process = psutil.Process(server.pid)
    load = Load(server.address, histories)
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
    during = [each.seconds for each in load.found if each.ended_s < quiet_s]
    after = [each.seconds for each in load.found if each.ended_s >= quiet_s]
    good, refused = [r for *_, r in reloads if not r.error], [r for *_, r in reloads if r.error]
    return {
        "requests": len(load.found),
        "statuses": dict(Counter(each.status for each in load.found)),
        "versions": dict(Counter(each.version for each in load.found)),
        "wrong_answers": sum(not each.right for each in load.found if each.status == "OK"),
        "exchanged": sum(each.version != each.previous for each in good),
        "refused": len(refused),
        "refusal": refused[0].error.split("/")[-1] if refused else "",
        "reload_s": round(float(np.median([end - begin for begin, end, each in reloads if not each.error])), 2),
        "during_ms": _times(during),
        "quiet_ms": _times(after),
        "rss_mb": {"after_10": round(rss_mb[9], 1), "after_50": round(rss_mb[RELOADS - 1], 1)},
    }


def _times(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.quantile(seconds, q / 100)) * 1e3, 2) for q in (50, 99)}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs=2)
    chosen = parser.parse_args()
    opened = [Bundle.open(path) for path in chosen.bundles]
    common = sorted(set(opened[0].catalogue.ids) & set(opened[1].catalogue.ids))
    random = np.random.default_rng(SEED)
    histories = [[common[i] for i in random.choice(len(common), LENGTH, replace=False)] for _ in range(HISTORIES)]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        publish(chosen.bundles[0], repository, 1)
        with started(repository) as server:
            result = asyncio.run(measure(server, chosen.bundles, repository, histories))
    print(result)
    names = [read_manifest(path).name for path in chosen.bundles]
    config = {"bundles": names, "rate_per_s": RATE, "reloads": RELOADS, "damaged": DAMAGED, "depth": DEPTH}
    print(f"stored in {save_run('reload', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
