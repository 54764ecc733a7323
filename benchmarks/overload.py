"""A server under more load than it can bear: goodput, and what becomes of the rest.

    python -m fathom.benchmarks.overload BUNDLE --data DATASET

Poisson arrivals at multiples of the rate that the deepest depth can answer; each request wants its answer within 50 ms
and says so to the server, which wants the deepest depth for all. Goodput: requests/s that are answered in time. Once
with the backlog that a server has by default, once with a small one. The client runs beside the server and takes its
part of the processor, so it does as little as it can: requests are encoded before, answers looked at afterwards.
Writes results/overload.json, with --name NAME results/overload-NAME.json.
"""

import argparse
import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import uvloop

from fathom.benchmarks.grpc_echo import METHOD
from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.routing_server import read_cases
from fathom.benchmarks.server_start import Started, started
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SEED = 0
DEADLINE_S = 0.05
FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
LOAD_S = 15.0
#: Calls that gRPC holds unread; None: as by default.
BACKLOGS = (None, 8)
#: Of the closed loop that measures capacity.
CONCURRENCY, ANSWERS = 64, 1_600


class Ended(NamedTuple):
    """One request: seconds from the moment it was due and from its call to its end, status, depth if answered."""

    due_s: float
    called_s: float
    status: str
    depth: int | None


async def offer(call: Any, requests: Sequence[bytes], rate: float, seconds: float) -> list[Ended]:
    """Poisson arrivals, however slow the answers are; what is late before it is called is not called any more."""
    moments = np.cumsum(np.random.default_rng(SEED).exponential(1 / rate, int(rate * seconds))).tolist()
    ended: list[float | None] = [None] * len(moments)
    called: list[tuple[float, Any]] = []
    everything = asyncio.Event()
    left = len(moments)

    def end(place: int) -> None:
        nonlocal left
        ended[place] = time.perf_counter()
        left -= 1
        if not left:
            everything.set()

    begin = time.perf_counter()
    for place, moment in enumerate(moments):
        if (early_s := moment - (time.perf_counter() - begin)) > 0:
            await asyncio.sleep(early_s)
        now = time.perf_counter()
        time_s = DEADLINE_S - (now - begin - moment)
        made = call(requests[place % len(requests)], timeout=time_s) if time_s > 0 else None
        called.append((now, made))
        if made is None:
            end(place)
        else:
            made.add_done_callback(lambda _, place=place: end(place))
        if place % 64 == 0:
            await asyncio.sleep(0)
    await everything.wait()
    return [
        await _ended(begin + moment, *each, end_s)
        for moment, each, end_s in zip(moments, called, ended, strict=True)
        if end_s is not None
    ]


async def _ended(due: float, called: float, made: Any, end_s: float) -> Ended:
    if made is None:
        return Ended(end_s - due, 0.0, "TOO_LATE", None)
    code = await made.code()
    depth = pb.RecommendResponse.FromString(await made).depth if code is grpc.StatusCode.OK else None
    return Ended(end_s - due, end_s - called, code.name, depth)


def summarise(found: list[Ended], seconds: float) -> dict[str, Any]:
    """Goodput, and times in milliseconds of the calls that were answered and of those that were refused."""
    timely = [each for each in found if each.depth is not None and each.due_s <= DEADLINE_S]
    return {
        "requests": len(found),
        "offered_per_s": round(len(found) / seconds, 1),
        "goodput_per_s": round(len(timely) / seconds, 1),
        "in_time": round(len(timely) / len(found), 4),
        "statuses": dict(Counter(each.status for each in found)),
        "answered_p99_ms": _quantile(found, "OK", 0.99),
        "refused_p50_ms": _quantile(found, "RESOURCE_EXHAUSTED", 0.5),
        "refused_p99_ms": _quantile(found, "RESOURCE_EXHAUSTED", 0.99),
        "cancelled_p99_ms": _quantile(found, "CANCELLED", 0.99),
        "depths": {
            str(depth): count for depth, count in sorted(Counter(each.depth for each in timely).items()) if depth
        },
    }


def _quantile(found: list[Ended], status: str, share: float) -> float | None:
    times = [each.called_s for each in found if each.status == status]
    return round(float(np.quantile(times, share)) * 1e3, 2) if times else None


async def capacity_of(server: Started, requests: Sequence[bytes]) -> float:
    """Requests/s that a closed loop gets answered, without deadlines: at the depth that the server wants."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        numbers = iter(range(ANSWERS))

        async def caller() -> None:
            for number in numbers:
                await call(requests[number % len(requests)])

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
        return ANSWERS / (time.perf_counter() - begin)


async def measure(server: Started, requests: Sequence[bytes], capacity: float, seconds: float) -> list[dict[str, Any]]:
    """Every factor of the capacity."""
    process = psutil.Process(server.pid)
    rows = []
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        for factor in FACTORS:
            before = process.memory_info().rss
            gc.disable()
            found = await offer(call, requests, factor * capacity, seconds)
            gc.enable()
            grown = (process.memory_info().rss - before) / 1e6
            rows.append({"factor": factor, **summarise(found, seconds), "memory_grown_mb": round(grown, 2)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=LOAD_S)
    parser.add_argument("--name")
    chosen = parser.parse_args()
    bundle = Bundle.open(chosen.bundle)
    cases = read_cases(bundle, Dataset.load(chosen.data))
    requests = [pb.RecommendRequest(item_ids=case.items).SerializeToString() for case in cases]
    # Each history comes several times; that they are remembered is not what this is about.
    options = ["--policy", "deepest", "--feedback-share", "0", "--reuse-mb", "0"]
    with started(chosen.bundle, *options) as server:
        capacity = uvloop.run(capacity_of(server, requests))
    result: dict[str, Any] = {"capacity_per_s": round(capacity, 1)}
    for backlog in BACKLOGS:
        with started(chosen.bundle, *options, *(["--backlog", str(backlog)] if backlog else [])) as server:
            rows = uvloop.run(measure(server, requests, capacity, chosen.seconds))
        result[f"backlog_{backlog or 'default'}"] = rows
    config = {
        "bundle": bundle.manifest.name,
        "width": bundle.manifest.model.width,
        "mean_history": round(sum(len(case.items) for case in cases) / len(cases), 1),
        "deadline_ms": DEADLINE_S * 1e3,
        "load_s": chosen.seconds,
    }
    name = f"overload-{chosen.name}" if chosen.name else "overload"
    print(f"stored in {save_run(name, config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
