"""What a short request waits for while somebody else floods the server with long ones.

Default settings; the server has a core, both clients share another. The victim asks for the shallowest depth with ten
items, one call at a time on a connection of its own; the flood keeps so many calls for the deepest depth with the
longest histories outstanding, all on one connection: under one name, under a hundred, or under a new one for each call;
or on a hundred connections. Victim and flood come from one host. The items of every call are new, so that no cache
helps. In turns of all arms; what the victim may wait for is one batch of the flood, which cannot be interrupted. As it
calls again at once, that is a whole batch, just begun. Writes results/fairness.json.
"""

import asyncio
import random
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
import numpy as np

from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, StartedServer, on_core, started
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.serving.access.caller import CLIENT_KEY

SEED = 0
TURNS = 5
LOAD_S = 6.0
#: Until the flood is at its height, and how much longer than the victim it goes on.
BEFORE_S, AFTER_S = 1.5, 0.5
OUTSTANDING = 300
SHORT_ITEMS = 10
#: Different requests of the victim.
REQUESTS = 20_000
#: What a refused call waits before the next, in seconds.
REFUSED_S = 0.01
#: How many times what it is alone the victim's p99 may be, besides a batch.
AT_MOST = 3


class Flood(NamedTuple):
    """``connections`` that it uses, and how many ``names`` its calls claim in turn; 0: a new one each."""

    connections: int = 1
    names: int = 1


ARMS: dict[str, Flood | None] = {
    "nobody": None,
    "one connection": Flood(),
    "100 names on one connection": Flood(names=100),
    "a new name for each call": Flood(names=0),
    "100 connections": Flood(connections=100),
}


class Requests(NamedTuple):
    """Encoded requests for a depth, each with so many random ones of all items; the same for the same seed."""

    ids: Sequence[str]
    items: int
    depth: int
    seed: int

    def messages(self) -> Iterator[bytes]:
        """Without end."""
        rng = random.Random(self.seed)
        while True:
            yield pb.RecommendRequest(item_ids=rng.sample(self.ids, self.items), depth=self.depth).SerializeToString()


def flood(address: str, requests: Requests, how: Flood, seconds: float) -> dict[str, Any]:
    """Keep OUTSTANDING calls open; returns how they ended, and milliseconds of a batch at the median and p99."""
    return asyncio.run(_flood(address, requests, how, seconds))


async def _flood(address: str, requests: Requests, how: Flood, seconds: float) -> dict[str, Any]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(how.connections)]
    calls = [each.unary_unary(METHOD, None, pb.RecommendResponse.FromString) for each in channels]
    ends: Counter[str] = Counter()
    batches_ms: list[float] = []
    messages, end_s = enumerate(requests.messages()), time.monotonic() + seconds

    async def caller(call: Callable[..., Any]) -> None:
        while time.monotonic() < end_s:
            number, message = next(messages)
            name = str(number % how.names if how.names else number)
            metadata = () if how.names == 1 else ((CLIENT_KEY, name),)
            try:
                answer = await call(message, metadata=metadata)
                timings = answer.timings
                batches_ms.append((timings.engine_us + timings.retrieval_us) / 1e3)
                ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1
                await asyncio.sleep(REFUSED_S)

    await asyncio.gather(*(caller(calls[number % len(calls)]) for number in range(OUTSTANDING)))
    for channel in channels:
        await channel.close(None)
    p50, p99 = np.quantile(batches_ms or [np.nan], (0.5, 0.99))
    return {"per_s": sum(ends.values()) / seconds, "ends": dict(ends), "batch_p50_ms": p50, "batch_p99_ms": p99}


def arm_of(server: StartedServer, short: Requests, long: Requests, how: Flood | None, seconds: float) -> dict[str, Any]:
    """The victim's times, and what became of the flood, if there is one."""
    if how is None:
        return _victim(server, short, seconds)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()
        flooding = pool.submit(flood, server.address, long, how, BEFORE_S + seconds + AFTER_S)
        time.sleep(BEFORE_S)
        found = _victim(server, short, seconds)
        return {**found, "flood": flooding.result()}


def _victim(server: StartedServer, requests: Requests, seconds: float) -> dict[str, Any]:
    report = closed(server.address, list(islice(requests.messages(), REQUESTS)), 1, 1, seconds)
    ends = report.counts()
    return {"p50_ms": report.quantile_ms("OK", 0.5), "p99_ms": report.quantile_ms("OK", 0.99), "ends": ends}


def measure(options: Namespace) -> Iterator[Run]:
    """Every arm, in turns, with one server."""
    with Bundle.open(options.bundle) as bundle:
        ids, depths, manifest = list(bundle.catalogue.ids), bundle.depths, bundle.manifest
    longest = min(manifest.model.max_history, len(ids))
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with on_core(SERVER_CORE), started(options.bundle, "--feedback-share", "0") as server, on_core(CLIENT_CORE):
        for turn in range(options.turns):
            for number, (name, how) in enumerate(ARMS.items()):
                seed = 2 * (turn * len(ARMS) + number)
                short = Requests(ids, min(SHORT_ITEMS, longest), min(depths), seed)
                long = Requests(ids, longest, max(depths), seed + 1)
                turns[name].append(arm_of(server, short, long, how, options.seconds))
    config = {
        "bundle": manifest.name,
        "width": manifest.model.width,
        "short": {"items": SHORT_ITEMS, "depth": min(depths)},
        "long": {"items": longest, "depth": max(depths)},
        "outstanding": OUTSTANDING,
        "load_s": options.seconds,
        "turns": options.turns,
    }
    yield Run(config, summarise(turns), SEED, options.name)


def summarise(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each arm's turns with their range, what the p99 may be, and every turn."""
    alone_ms = median(turn["p99_ms"] for turn in turns["nobody"])
    rows = []
    for name, found in turns.items():
        p99_ms = [turn["p99_ms"] for turn in found]
        row = {
            "flood": name,
            "victim_p50_ms": round(median(turn["p50_ms"] for turn in found), 3),
            "victim_p99_ms": round(median(p99_ms), 3),
            "victim_p99_range_ms": [round(min(p99_ms), 3), round(max(p99_ms), 3)],
            "answers": sum(turn["ends"].get("OK", 0) for turn in found),
            "not_answered": sum(sum(turn["ends"].values()) - turn["ends"].get("OK", 0) for turn in found),
        }
        if "flood" in found[0]:
            batch_ms = median(turn["flood"]["batch_p50_ms"] for turn in found)
            row |= {
                "batch_ms": round(batch_ms, 2),
                "batch_p99_ms": round(median(turn["flood"]["batch_p99_ms"] for turn in found), 2),
                "allowed_ms": round(AT_MOST * alone_ms + batch_ms, 2),
                "flood_per_s": round(median(turn["flood"]["per_s"] for turn in found), 1),
                "flood_ends": dict(sum((Counter(turn["flood"]["ends"]) for turn in found), Counter())),
            }
        rows.append(row)
    return {"rows": rows, "turns": turns}


def render(run: StoredRun) -> str:
    """A row per kind of flood."""
    config = run["config"]
    empty = dict.fromkeys(("batch_ms", "batch_p99_ms", "allowed_ms", "flood_per_s"))
    rows = [{**empty, **row, "ends": _ends(row)} for row in run["result"]["rows"]]
    return paragraphs(
        f"## A short request beside a flood of long ones, width {config['width']}",
        f"Bundle {config['bundle']}, default settings, server and clients on a core each. One client asks for depth"
        f" {config['short']['depth']} with {config['short']['items']} items, one call at a time; another keeps"
        f" {config['outstanding']} calls for depth {config['long']['depth']} with {config['long']['items']} items"
        f" outstanding. Medians of {config['turns']} turns of {config['load_s']:g} s, in brackets the range. Allowed:"
        f" {AT_MOST} times the p99 without a flood, and the median batch of the flood, which nobody can interrupt.",
        table_of(
            rows,
            "flood={flood} | p50 ms={victim_p50_ms:.2f} | p99 ms={victim_p99_ms:.2f}"
            " ({victim_p99_range_ms[0]:.2f} to {victim_p99_range_ms[1]:.2f}) | allowed ms={allowed_ms:.1f}"
            " | the flood's batch ms={batch_ms:.1f} | its p99 ms={batch_p99_ms:.1f}"
            " | answers={answers:,} | not answered={not_answered:,}"
            " | flood/s={flood_per_s:,.0f} | how the flood ended={ends}",
        ),
    )


def _ends(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in row.get("flood_ends", {}).items())


BENCHMARK = Benchmark(
    __doc__,
    "4 min, two cores",
    {"bundle": Path, "--seconds": LOAD_S, "--turns": TURNS, "--name": "fairness"},
    measure,
    of_runs(render, "fairness"),
)
