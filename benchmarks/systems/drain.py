"""What callers see when their server drains: 64 plain callers, SIGTERM, again and again.

`fathom serve`, with one process and with two workers, and 64 callers, each on a connection of its own, one call after
the other, nothing tried again. Each stops at its first failure, unless the server was full. Every drain is
of a new server.
"""

import asyncio
import signal
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil

from fathom.benchmarks.load import made_up
from fathom.benchmarks.markdown import table
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, catalogue_ids, started

CALLERS = 64
#: The depth that is asked for, and different requests.
DEPTH, REQUESTS = 4, 500
WORKERS = (1, 2)
DRAINS = 10
#: Of calls before the signal, and of a caller whom a full server refuses.
LOAD_S, PAUSE_S = 1.0, 0.02
MOST_S = 60.0
KNOWN = ("OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
PLAIN = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


async def call_until_refused(address: str, requests: Sequence[bytes], statuses: Counter[str]) -> None:
    """One caller: until its first failure; where the server is full, it goes on after a pause."""
    async with grpc.aio.insecure_channel(address, options=PLAIN) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        for number in range(10**9):
            try:
                await call(requests[number % len(requests)], timeout=MOST_S)
                statuses["OK"] += 1
            except grpc.aio.AioRpcError as error:
                statuses[error.code().name] += 1
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return
                await asyncio.sleep(PAUSE_S)


async def drained(address: str, pid: int, requests: list[bytes], statuses: Counter[str]) -> float:
    """Let callers call, drain the server; returns the seconds until its process has ended."""
    async with asyncio.timeout(MOST_S), asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(call_until_refused(address, requests[number:] + requests[:number], statuses))
        await asyncio.sleep(LOAD_S)
        began = time.perf_counter()
        server = psutil.Process(pid)
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(psutil.wait_procs, [server], timeout=MOST_S)
        return time.perf_counter() - began


def drains_of(bundle: Path, workers: int, drains: int) -> dict[str, Any]:
    """Statuses of all calls, and how long the drains took."""
    requests, statuses, took = made_up(catalogue_ids(bundle), DEPTH, REQUESTS, "drain"), Counter[str](), []
    cut_off = 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        for _ in range(drains):
            with started(bundle, "--workers", str(workers), log=log) as server:
                took.append(asyncio.run(drained(server.address, server.pid, requests, statuses)))
            cut_off += workers - log.read_text().count("drained; 0 calls cut off")
    return {
        "processes": workers,
        "drains": drains,
        "statuses": dict(statuses),
        "cut_off": cut_off,
        "seconds": {"median": round(median(took), 2), "most": round(max(took), 2)},
    }


def measure(options: Namespace) -> Iterator[Run]:
    """One process, then workers."""
    result = {"drains": [drains_of(options.bundle, workers, options.drains) for workers in WORKERS]}
    yield Run({"bundle": options.bundle.name, "callers": CALLERS}, result)


def render(run: StoredRun) -> str:
    """A table: a row for each number of processes."""
    rows = []
    for each in run["result"]["drains"]:
        others = dict(each["statuses"])
        known = [f"{others.pop(status, 0):,}" for status in KNOWN]
        seconds = each["seconds"]
        row = (each["processes"], each["drains"], *known, sum(others.values()), each["cut_off"])
        rows.append([*map(str, row), f"{seconds['median']:g}, {seconds['most']:g}"])
    head = ["processes", "drains", "answered", *KNOWN[1:], "other statuses", "cut off", "seconds: median, most"]
    return "\n\n".join(
        [
            "## Drains",
            f"SIGTERM under {run['config']['callers']} callers, each on a connection of its own, one call after the"
            " other until its first failure (a full server is none), nothing tried again. Cut off: processes that left"
            " calls unanswered which they had let in.",
            table(head, rows),
        ]
    )


BENCHMARK = Benchmark(__doc__, "2 min", {"bundle": Path, "--drains": DRAINS}, measure, of_runs(render, "drain"))
