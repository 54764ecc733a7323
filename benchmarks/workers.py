"""A worker killed under load: which requests notice, and how soon another one takes its place.

    python -m fathom.benchmarks.workers build/ml-100k/bundle [--repetitions 20]

`fathom serve --workers 2`, requests at random moments over eight connections, nothing tried again. Each time one
worker gets kill -9. A request that failed was in flight in it when it began before the kill and ended after it, or
soon after, before the client could know. The next kill waits until the new worker says that it is ready. Writes
results/workers.json.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil

from fathom.benchmarks.grpc_echo import METHOD, make_requests
from fathom.benchmarks.record import run, save_run

SEED = 0
RATE = 300.0
CHANNELS = 8
REPETITIONS = 20
#: Between a worker that is ready and the next kill.
CALM_S = 1.0
#: In which a process ends, the kernel closes its connections, and the client hears of it.
NOTICED_S = 0.05
MOST_S = 60.0


class Called(NamedTuple):
    """One request: when it was called and when it ended, and its status."""

    began_s: float
    ended_s: float
    status: str


class Load:
    """Requests at random moments, each connection in turn, until it is told to stop."""

    def __init__(self, address: str, requests: Sequence[bytes]) -> None:
        self._address = address
        self._requests = requests
        self.found: list[Called] = []
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Plain calls, so that nothing is tried again behind our back."""
        random = np.random.default_rng(SEED)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            calls = []
            for _ in range(CHANNELS):
                options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(self._address, options=options))
                calls.append(channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None))
            begin, due_s, number = time.perf_counter(), 0.0, 0
            while not self.stop.is_set():
                due_s += random.exponential(1 / RATE)
                await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - begin)))
                group.create_task(self._one(calls[number % CHANNELS], self._requests[number % len(self._requests)]))
                number += 1

    async def _one(self, call: Any, request: bytes) -> None:
        began_s, status = time.perf_counter(), "OK"
        try:
            await call(request, timeout=MOST_S)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        self.found.append(Called(began_s, time.perf_counter(), status))


async def until(ready: Any) -> None:
    """Wait for something that only looking can tell."""
    async with asyncio.timeout(MOST_S):
        while not ready():
            await asyncio.sleep(0.01)


async def measure(parent: int, log: Path, address: str, requests: Sequence[bytes], repetitions: int) -> dict[str, Any]:
    """Kill a worker, wait for the next one, as often as asked."""
    load = Load(address, requests)
    loading = asyncio.create_task(load.run())
    kills, back_s = [], []
    for repetition in range(repetitions):
        await asyncio.sleep(CALM_S)
        workers = [each.pid for each in psutil.Process(parent).children() if "spawn_main" in " ".join(each.cmdline())]
        said = log.read_text().count('"message": "ready"')
        kills.append(time.perf_counter())
        os.kill(workers[repetition % len(workers)], signal.SIGKILL)
        await until(lambda said=said: log.read_text().count('"message": "ready"') > said)
        back_s.append(time.perf_counter() - kills[-1])
    await asyncio.sleep(CALM_S)
    load.stop.set()
    await loading
    failed = [each for each in load.found if each.status != "OK"]
    inside = sum(any(each.began_s <= kill <= each.ended_s for kill in kills) for each in failed)
    soon = sum(any(kill < each.began_s <= kill + NOTICED_S for kill in kills) for each in failed)
    return {
        "kills": repetitions,
        "requests": len(load.found),
        "statuses": dict(Counter(each.status for each in load.found)),
        "failed_in_flight": inside,
        "failed_before_it_was_noticed": soon,
        "failed_otherwise": len(failed) - inside - soon,
        "in_flight_at_kills": sum(each.began_s <= kill <= each.ended_s for each in load.found for kill in kills),
        "back_s": {"median": round(median(back_s), 2), "most": round(max(back_s), 2)},
    }


@contextmanager
def serving(bundle: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`fathom serve` with two workers and its log; the first line of its output has the address."""
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--workers", "2", "--json"]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serving(chosen.bundle, log) as process:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            requests = make_requests(chosen.bundle)
            result = asyncio.run(measure(process.pid, log, address, requests, chosen.repetitions))
    print(result)
    config = {"bundle": chosen.bundle.name, "workers": 2, "rate_per_s": RATE, "channels": CHANNELS}
    print(f"stored in {save_run('workers', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
