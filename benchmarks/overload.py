"""A server under more load than it can bear: goodput, and what becomes of the rest.

    python -m fathom.benchmarks.overload build/routing/ml-1m-seed-0/bundle --data build/quality/ml-1m/dataset

Poisson arrivals at multiples of the rate that the deepest depth can answer; each request wants its answer within 50 ms
and the server, which wants the deepest depth for all, is told so. Goodput: requests/s that are answered in time. Once
with the backlog that a server has by default, once with a small one. The client runs beside the server and takes its
part of the processor. Writes results/overload.json.
"""

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.routing_server import (
    DEADLINE_S,
    REQUESTS,
    SEED,
    Answered,
    AsyncStubs,
    Case,
    ask_all,
    offer,
    read_cases,
)
from fathom.benchmarks.server_start import Started, started
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
LOAD_S = 15.0
#: Calls that gRPC holds unread; None: as by default.
BACKLOGS = (None, 8)


def summarise(found: list[Answered], seconds: float) -> dict[str, Any]:
    """Goodput, and times in milliseconds of the calls that were answered and of those that were refused."""
    timely = [each for each in found if each.depth is not None and each.seconds <= DEADLINE_S]
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


def _quantile(found: list[Answered], status: str, share: float) -> float | None:
    times = [each.called_s for each in found if each.status == status]
    return round(float(np.quantile(times, share)) * 1e3, 2) if times else None


async def capacity_of(server: Started, cases: list[Case], depth: int) -> float:
    """Requests/s that a closed loop gets answered at one depth."""
    async with AsyncStubs({"server": server}) as stubs:
        begin = time.perf_counter()
        await ask_all(stubs["server"], cases[: 4 * REQUESTS], 64, depth)
        return 4 * REQUESTS / (time.perf_counter() - begin)


async def measure(server: Started, cases: list[Case], capacity: float, seconds: float) -> list[dict[str, Any]]:
    """Every factor of the capacity."""
    process = psutil.Process(server.pid)
    rows = []
    async with AsyncStubs({"server": server}) as stubs:
        for factor in FACTORS:
            before = process.memory_info().rss
            found = await offer(stubs["server"], cases, factor * capacity, seconds, deadline=True)
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
    chosen = parser.parse_args()
    bundle = Bundle.open(chosen.bundle)
    cases = read_cases(bundle, Dataset.load(chosen.data))
    # Each history comes several times; that they are remembered is not what this is about.
    options = ["--policy", "deepest", "--feedback-share", "0", "--reuse-mb", "0"]
    with started(chosen.bundle, *options) as server:
        capacity = asyncio.run(capacity_of(server, cases, bundle.depths[-1]))
    result: dict[str, Any] = {"capacity_per_s": round(capacity, 1)}
    for backlog in BACKLOGS:
        with started(chosen.bundle, *options, *(["--backlog", str(backlog)] if backlog else [])) as server:
            rows = asyncio.run(measure(server, cases, capacity, chosen.seconds))
        result[f"backlog_{backlog or 'default'}"] = rows
    config = {"bundle": bundle.manifest.name, "deadline_ms": DEADLINE_S * 1e3, "load_s": chosen.seconds}
    print(f"stored in {save_run('overload', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
