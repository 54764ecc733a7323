"""A worker killed under load: which requests notice, and how soon another one takes its place.

`fathom serve --workers 2`, requests at random moments over eight connections, nothing tried again. Each time one
worker gets kill -9. A request that failed was in flight in it when it began before the kill and ended after it, or
soon after, before the client could know. The next kill waits until the new worker says that it is ready.
"""

import asyncio
import os
import signal
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc

from fathom.benchmarks.load import made_up, open_loop
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, catalogue_ids, started
from fathom.benchmarks.systems.soak.disturber import workers_of

SEED = 0
RATE = 300.0
#: The depth that is asked for, and different requests.
DEPTH, REQUESTS = 4, 500
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


class WorkersTraffic:
    """Requests at random moments, each connection in turn, until it is told to stop."""

    def __init__(self, address: str, requests: Sequence[bytes]) -> None:
        self._address = address
        self._requests = requests
        self.found: list[Called] = []
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Plain calls, so that nothing is tried again behind our back."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        async with AsyncExitStack() as stack:
            calls = []
            for _ in range(CHANNELS):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(self._address, options=options))
                calls.append(channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None))

            def send(number: int, _: float) -> Coroutine[Any, Any, None]:
                return self._one(calls[number % CHANNELS], self._requests[number % len(self._requests)])

            await open_loop(send, RATE, stop=self.stop, seed=SEED)

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


async def kills_of(parent: int, log: Path, address: str, requests: Sequence[bytes], repetitions: int) -> dict[str, Any]:
    """Kill a worker, wait for the next one, as often as asked."""
    load = WorkersTraffic(address, requests)
    loading = asyncio.create_task(load.run())
    kills, back_s = [], []
    for repetition in range(repetitions):
        await asyncio.sleep(CALM_S)
        workers = [each.pid for each in workers_of(parent)]
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


def measure(options: Namespace) -> Iterator[Run]:
    """All kills."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with started(options.bundle, "--workers", "2", log=log) as server:
            requests = made_up(catalogue_ids(options.bundle), DEPTH, REQUESTS, "workers")
            result = asyncio.run(kills_of(server.pid, log, server.address, requests, options.repetitions))
    yield Run({"bundle": options.bundle.name, "workers": 2, "rate_per_s": RATE, "channels": CHANNELS}, result, SEED)


def render(run: StoredRun) -> str:
    """One paragraph."""
    result, config = run["result"], run["config"]
    return "\n\n".join(
        [
            "## A worker killed under load",
            f"kill -9 of one of {config['workers']} workers, {result['kills']} times, at {config['rate_per_s']:g}"
            f" requests/s over {config['channels']} connections, nothing tried again: of {result['requests']:,}"
            f" requests {result['failed_in_flight']} failed, of {result['in_flight_at_kills']} that were in flight in"
            f" both workers at those moments, {result['failed_before_it_was_noticed']} that were sent before the client"
            f" could notice, and {result['failed_otherwise']} others. Another worker was ready"
            f" after {result['back_s']['median']:g} s (median; at most {result['back_s']['most']:g}).",
        ]
    )


BENCHMARK = Benchmark(
    __doc__, "2 min", {"bundle": Path, "--repetitions": REPETITIONS}, measure, of_runs(render, "workers")
)
