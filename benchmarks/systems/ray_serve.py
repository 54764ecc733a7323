"""Fathom on Ray Serve, beside `fathom serve --workers 2`: speed, a killed replica, returning users.

Everything is on one machine, the callers too. Capacity: 16 callers, one call after the other. Latency: requests at
random moments (an open loop) at a share of that capacity, at most 300 a second. Then replicas get kill -9 under such
load, nothing tried again. At last users come with a few items more, all of them, and then all once again, as for the
next page: that answer was from the cache if the engine took less than half as long as for histories that were new.
"""

import asyncio
import os
import random
import signal
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from fathom.benchmarks.load import closed_loop, made_up, open_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.ray_cluster import deploy, ray_cluster, replica_processes, running_replicas
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, catalogue_ids, started
from fathom.benchmarks.systems.workers import Called, until
from fathom.client import Client

SEED = 0
DEPTH, REQUESTS = 4, 500
CALLERS, CHANNELS = 16, 8
#: Of the capacity, and requests per second at most.
SHARE, MOST_PER_S = 0.6, 300.0
SECONDS, KILLS = 15.0, 5
#: Requests before anything is measured.
WARM = 200
CALM_S, TIMEOUT_S = 2.0, 30.0
#: Returning users: how many, how often they come with something new, and the depth that they ask for.
USERS, VISITS, DEEPEST = 40, 4, 16
#: Items of a history at first, and that each visit adds.
LENGTH, MORE = 160, 10
PLAIN = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


class Caller:
    """Plain calls over several connections in turn, nothing tried again."""

    def __init__(self, address: str, requests: Sequence[bytes]) -> None:
        self._address, self._requests = address, requests
        self._stack = AsyncExitStack()
        self._calls: list[Any] = []
        self.found: list[Called] = []

    async def __aenter__(self) -> "Caller":
        for _ in range(CHANNELS):
            channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self._address, options=PLAIN))
            self._calls.append(channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def one(self, number: int) -> None:
        """One request; ``found`` gets it."""
        began_s, status = time.perf_counter(), "OK"
        try:
            await self._calls[number % CHANNELS](self._requests[number % len(self._requests)], timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        self.found.append(Called(began_s, time.perf_counter(), status))

    def at(self, number: int, _: float) -> Coroutine[Any, Any, None]:
        """For an open loop."""
        return self.one(number)


async def speed_of(address: str, requests: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Capacity, and latency at a share of it."""
    async with Caller(address, requests) as caller:
        await closed_loop(caller.one, CALLERS, WARM)
        rough = await closed_loop(caller.one, CALLERS, WARM)
        capacity = await closed_loop(caller.one, CALLERS, max(WARM, int(rough * seconds)))
        rate = min(MOST_PER_S, SHARE * capacity)
        caller.found.clear()
        await open_loop(caller.at, rate, count=max(WARM, int(rate * seconds)), seed=SEED)
    took_ms = sorted((each.ended_s - each.began_s) * 1e3 for each in caller.found)
    return {
        "capacity_per_s": round(capacity),
        "rate_per_s": round(rate),
        "p50_ms": round(took_ms[len(took_ms) // 2], 2),
        "p99_ms": round(took_ms[int(len(took_ms) * 0.99)], 2),
        "statuses": dict(Counter(each.status for each in caller.found)),
    }


async def kills_of(address: str, requests: Sequence[bytes], rate: float, kills: int) -> dict[str, Any]:
    """Kill one of two replicas under load, wait for the next one, as often as asked."""
    killed_s, back_s, stop = [], [], asyncio.Event()
    async with Caller(address, requests) as caller:
        loading = asyncio.create_task(open_loop(caller.at, rate, stop=stop, seed=SEED))
        for number in range(kills):
            await asyncio.sleep(CALM_S)
            before = replica_processes()
            killed_s.append(time.perf_counter())
            os.kill(before[number % len(before)], signal.SIGKILL)
            await asyncio.to_thread(_until_replaced, before)
            back_s.append(time.perf_counter() - killed_s[-1])
        await asyncio.sleep(CALM_S)
        stop.set()
        await loading
    failed = [each for each in caller.found if each.status != "OK"]
    inside = sum(any(each.began_s <= kill <= each.ended_s for kill in killed_s) for each in failed)
    answered_s = sorted(each.ended_s for each in caller.found if each.status == "OK")
    gaps_s = [min(after - kill for after in answered_s if after > kill) for kill in killed_s]
    return {
        "kills": kills,
        "rate_per_s": round(rate),
        "requests": len(caller.found),
        "statuses": dict(Counter(each.status for each in caller.found)),
        "in_flight_at_kills": sum(each.began_s <= kill <= each.ended_s for each in caller.found for kill in killed_s),
        "failed_in_flight": inside,
        "failed_otherwise": len(failed) - inside,
        "longest_wait_s": round(max(each.ended_s - each.began_s for each in caller.found), 2),
        "next_answer_ms": round(max(gaps_s) * 1e3, 1),
        "back_s": {"median": round(median(back_s), 1), "most": round(max(back_s), 1)},
    }


def _until_replaced(before: Sequence[int]) -> None:
    """Wait until as many replicas as before get requests, and one of them is new."""

    def replaced() -> bool:
        return bool(set(replica_processes()) - set(before)) and running_replicas() == len(before)

    asyncio.run(until(replaced))


def hits_of(address: str, ids: Sequence[str], users: int) -> dict[str, Any]:
    """The share of returning users whose history was in the cache of the process that answered."""
    rng = random.Random("returning")
    histories = [rng.choices(ids, k=LENGTH + VISITS * MORE) for _ in range(users)]
    first_us: list[int] = []
    again_us: list[int] = []
    with Client(address, channels=4) as client:
        for visit in range(VISITS):
            for took_us in (first_us, again_us):
                for user in rng.sample(range(users), users):
                    items = histories[user][: LENGTH + visit * MORE]
                    timings = client.recommend(items, k=10, depth=DEEPEST, timeout_s=TIMEOUT_S).timings
                    assert timings is not None
                    took_us.append(timings.engine_us)
    limit_us = median(first_us) / 2
    return {
        "returns": len(again_us),
        "hits": round(sum(each < limit_us for each in again_us) / len(again_us), 3),
        "first_us": round(median(first_us)),
        "again_us": round(median(again_us)),
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Workers, then Ray with one replica and with two."""
    ids = catalogue_ids(options.bundle)
    requests = made_up(ids, DEPTH, REQUESTS, "ray_serve")
    speeds, hits = [], []
    with started(options.bundle, "--workers", "2") as server:
        speeds.append({"server": "fathom serve --workers 2"} | _speed(server.address, requests, options))
        hits.append({"server": "fathom serve --workers 2"} | hits_of(server.address, ids, options.users))
    with ray_cluster() as address:
        deploy(options.bundle)
        speeds.append({"server": "Ray Serve, 1 replica"} | _speed(address, requests, options))
        deploy(options.bundle, replicas=2)
        speeds.append({"server": "Ray Serve, 2 replicas"} | _speed(address, requests, options))
        hits.append({"server": "Ray Serve, 2 replicas"} | hits_of(address, ids, options.users))
        rate = min(MOST_PER_S, SHARE * speeds[-1]["capacity_per_s"])
        kills = asyncio.run(kills_of(address, requests, rate, options.kills))
    with ray_cluster() as address:  # a running proxy keeps its router
        deploy(options.bundle, replicas=2, affinity=False)
        hits.append({"server": "Ray Serve, 2 replicas, affinity: false"} | hits_of(address, ids, options.users))
    config = {"bundle": options.bundle.name, "callers": CALLERS, "share": SHARE, "cores": os.cpu_count()}
    yield Run(config, {"speeds": speeds, "hits": hits, "kills": kills}, SEED)


def _speed(address: str, requests: Sequence[bytes], options: Namespace) -> dict[str, Any]:
    return asyncio.run(speed_of(address, requests, options.seconds))


def render(run: StoredRun) -> str:
    """Two tables and a paragraph."""
    config, result = run["config"], run["result"]
    kills = result["kills"]
    others = {status: count for status, count in kills["statuses"].items() if status != "OK"}
    return paragraphs(
        "## On Ray Serve",
        f"One machine of {config['cores']} cores, the callers on it too; depth {DEPTH}. Latency at"
        f" {config['share']:.0%} of each server's capacity, at most {MOST_PER_S:g} requests/s.",
        table_of(
            result["speeds"],
            "server={server} | requests/s with 16 callers={capacity_per_s} | at requests/s={rate_per_s}"
            " | p50 ms={p50_ms:.1f} | p99 ms={p99_ms:.1f}",
        ),
        f"kill -9 of one of two replicas, {kills['kills']} times, at {kills['rate_per_s']} requests/s, nothing tried"
        f" again: of {kills['requests']:,} requests {kills['failed_in_flight']} failed, of"
        f" {kills['in_flight_at_kills']} that were in flight in both at those moments, and {kills['failed_otherwise']}"
        f" others ({_told(others)}). The next answer came within {kills['next_answer_ms']:g} ms, the slowest"
        f" request took {kills['longest_wait_s']:g} s, and a new replica served after {kills['back_s']['median']:g} s"
        f" (median; at most {kills['back_s']['most']:g}).",
        f"Users who ask again at depth {DEEPEST}, one call at a time over four connections: whose history was in the"
        " cache of the process that answered.",
        table_of(
            result["hits"],
            "server={server} | asked again={returns} | from the cache={hits:.1%} | engine µs, first={first_us}"
            " | engine µs, again={again_us}",
        ),
    )


def _told(statuses: dict[str, int]) -> str:
    return ", ".join(f"{status} {count}" for status, count in sorted(statuses.items())) or "no other status than OK"


BENCHMARK = Benchmark(
    __doc__,
    "6 min, two cores, ray",
    {"bundle": Path, "--kills": KILLS, "--seconds": SECONDS, "--users": USERS},
    measure,
    of_runs(render, "ray_serve"),
)
