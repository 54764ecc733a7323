"""What one client's largest messages do to another: latency of a client that asks little, while bombs are thrown.

One client throws the same message over and over, so many at a time, on a connection of its own: the most work that
the server accepts in a message, of several kinds. Another asks for the best ten of short histories that come once, at
random moments. Kinds take turns, and the victim alone is one of them. The server has a core, both clients another;
settings are the defaults, and catalogue and histories are kept in memory. Writes results/batch_bomb.json.
"""

import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
import numpy as np

from fathom.benchmarks.http2_load import open as open_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import catalogue_ids, on_core, started
from fathom.protos.fathom.v1 import recommender_pb2 as pb

SERVICE = "/fathom.v1.Recommender/"
SEED = 0
SERVER_CORE, CLIENT_CORE = 0, 1
#: Of the victim: calls a second, items of a history, and when it begins to be measured.
PER_S, HISTORY, WARM_UP_S = 100, 20, 0.5
LARGEST_MESSAGE = 4 * 2**20
LONGEST = 10_000
#: Seconds that the server may take for a bomb.
LONGEST_S = 60.0
OPTIONS = (("grpc.max_receive_message_length", -1),)


class Bomb(NamedTuple):
    """A message of a method, thrown so many at a time; ``method`` is empty for none."""

    method: str = ""
    message: bytes = b""
    at_once: int = 1


def bombs(ids: Sequence[str]) -> dict[str, Bomb]:
    """The most that a message of each kind may ask for."""
    rng = random.Random(SEED)

    def request(history: int, **more: Any) -> pb.RecommendRequest:
        return pb.RecommendRequest(item_ids=rng.choices(ids, k=history), **more)

    def batch(count: int, history: int, **more: Any) -> Bomb:
        asked = [request(history, **more) for _ in range(count)]
        return Bomb("RecommendBatch", pb.RecommendBatchRequest(requests=asked).SerializeToString(), 2)

    def single(asked: pb.RecommendRequest) -> Bomb:
        return Bomb("Recommend", asked.SerializeToString(), 64)

    diverse = pb.Rules(diversity=0.5)
    listed = pb.Filter(exclude_item_ids=rng.choices(ids, k=LONGEST), allow_item_ids=rng.choices(ids, k=LONGEST))
    events = [pb.Event(event_id=str(i), item_id=rng.choice(ids), timestamp=i) for i in range(LONGEST)]
    items = [pb.CatalogueItem(id=f"new {i}", title="new", similar_item_ids=ids[:50]) for i in range(1_000)]
    return {
        "nothing": Bomb(),
        "as in an older version: 1,024 requests, k = 1,000, titles": batch(1_024, 1, k=1_000, include_titles=True),
        "80 requests, k = 1,000, titles, depth 0": batch(80, 1, k=1_000, include_titles=True, depth=0),
        "1,024 requests, k = 100, depth 4": batch(1_024, 1, k=100, depth=4),
        "1,024 requests of 50 items, depth 16": batch(1_024, 50, depth=16),
        "102 requests, k = 1,000, diversity, depth 4": batch(102, 5, k=1_000, rules=diverse, depth=4),
        "46 requests of 50 items with reasons, depth 16": batch(46, 50, include_reasons=True, depth=16),
        "64 single requests, k = 1,000, diversity, reasons, depth 0": single(
            request(50, k=1_000, rules=diverse, include_reasons=True, depth=0)
        ),
        "64 single requests of 10,000 items and a filter of 20,000": single(request(LONGEST, filter=listed, depth=4)),
        "a message of two million empty requests": Bomb("RecommendBatch", b"\x0a\x00" * (LARGEST_MESSAGE // 2 - 16), 2),
        "10,000 events": Bomb(
            "AppendEvents", pb.AppendEventsRequest(user_id="user", events=events).SerializeToString(), 2
        ),
        "1,000 items": Bomb("UpsertItems", pb.UpsertItemsRequest(items=items).SerializeToString(), 2),
    }


def throw(address: str, bomb: Bomb, seconds: float) -> dict[str, int]:
    """Throw a bomb again and again; how many ended in which way."""
    until_s = time.monotonic() + seconds

    def again(_: int) -> Counter[str]:
        ended: Counter[str] = Counter()
        while time.monotonic() < until_s:
            try:
                call(bomb.message, timeout=LONGEST_S)
            except grpc.RpcError as error:
                ended[error.code().name] += 1
            else:
                ended["OK"] += 1
        return ended

    with grpc.insecure_channel(address, options=OPTIONS) as channel, ThreadPoolExecutor(bomb.at_once) as pool:
        call = channel.unary_unary(SERVICE + bomb.method, request_serializer=None, response_deserializer=None)
        return dict(sum(pool.map(again, range(bomb.at_once)), Counter()))


def suffered(
    bundle: Path, bomb: Bomb, messages: Sequence[bytes], seconds: float, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """What the victim sees of a bomb, on a new server."""
    with ExitStack() as stack:
        with on_core(SERVER_CORE):
            server = stack.enter_context(started(bundle, "--history", "memory", "--catalogue", "memory"))
        thrown = None
        if bomb.method:
            thrown = pool.submit(throw, server.address, bomb, seconds + 2 * WARM_UP_S)
        time.sleep(WARM_UP_S)
        report = open_loop(server.address, messages, PER_S, 1, seconds, seed=SEED)
        ok = report.took_ms[report.statuses == 0]
        return {
            "p50_ms": float(np.quantile(ok, 0.5)),
            "p99_ms": float(np.quantile(ok, 0.99)),
            "worst_ms": float(ok.max()),
            "failed": len(report.due_s) - len(ok),
            "bombs": thrown.result() if thrown else {},
        }


def measure(options: Namespace) -> Iterator[Run]:
    """Every kind in turn, several times."""
    ids = catalogue_ids(options.bundle)
    rng = random.Random(SEED)
    count = int(PER_S * options.seconds * 1.5) + 100
    asked = [pb.RecommendRequest(item_ids=rng.choices(ids, k=HISTORY)).SerializeToString() for _ in range(count)]
    kinds = bombs(ids)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    with on_core(CLIENT_CORE), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for _ in range(options.turns):
            for kind, bomb in kinds.items():
                found[kind].append(suffered(options.bundle, bomb, asked, options.seconds, pool))
    result = {"kinds": [_row(kind, kinds[kind], turns) for kind, turns in found.items()]}
    config = {"bundle": options.bundle.name, "per_s": PER_S, "history": HISTORY, "seconds": options.seconds}
    yield Run(config | {"turns": options.turns}, result, SEED)


def _row(kind: str, bomb: Bomb, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def of(name: str, over: Callable[[list[float]], float]) -> float:
        return round(over([turn[name] for turn in turns]), 2)

    return {
        "kind": kind,
        "kb": round(len(bomb.message) / 1e3, 1),
        "p50_ms": of("p50_ms", median),
        "p99_ms": of("p99_ms", median),
        "least_p99_ms": of("p99_ms", min),
        "most_p99_ms": of("p99_ms", max),
        "worst_ms": of("worst_ms", max),
        "failed": sum(turn["failed"] for turn in turns),
        "bombs": dict(sum((Counter(turn["bombs"]) for turn in turns), Counter())),
    }


def render(run: StoredRun) -> str:
    """A row per kind."""
    config, rows = run["config"], run["result"]["kinds"]
    shown = [
        {**row, "thrown": ", ".join(f"{number:,} {status}" for status, number in row["bombs"].items()) or "–"}
        for row in rows
    ]
    return paragraphs(
        "### One client's largest messages",
        f"Bundle {config['bundle']}: latency of a client that asks {config['per_s']} times a second for the best ten of"
        f" a history of {config['history']} items, while another throws one kind of message again and again. Medians of"
        f" {config['turns']} turns of {config['seconds']:g} s, the least and the most of the p99, and the slowest"
        " answer of all.",
        table_of(
            shown,
            "thrown={kind} | KB={kb:,.1f} | p50 ms={p50_ms:.1f} | p99 ms={p99_ms:.1f} | least={least_p99_ms:.1f}"
            " | most={most_p99_ms:.1f} | worst ms={worst_ms:.0f} | failed={failed} | what became of them={thrown}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "8 min",
    {"bundle": Path, "--seconds": 5.0, "--turns": 5},
    measure,
    of_runs(render, "batch_bomb"),
)
