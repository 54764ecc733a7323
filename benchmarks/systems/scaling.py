"""What a request costs as histories, catalogues and load grow: the laws that it follows, and where each resource ends.

Histories: an untrained network of 16 layers whose layers look back over 1,000 items. Catalogues: the bundle's, and the
same filled up with items drawn from its density, searched flat and by a pq index. Both with one call at a time. Then
1 to 512 calls in flight, and one and two workers, with the bundle as it is. Depths 4 and 16; stage times are the
server's own, processor time is that of its processes. Server on one core, client on another; two workers have two
cores, which the client shares. Every turn has new servers, in another order, and measures the memory's bandwidth by a
triad. What is made first stays in the folder --work, and is not made again. Needs the extra faiss. --items may go up
to 10000000, which needs some 15 GB of memory and of disk. Writes results/scaling.json.
"""

import random
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from fathom.benchmarks.http2_load import Report, closed
from fathom.benchmarks.load import HISTORY, K, made_up
from fathom.benchmarks.registry import Benchmark, Run, of_runs
from fathom.benchmarks.server import StartedServer, catalogue_ids, on_core, started
from fathom.benchmarks.systems import item_index
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.benchmarks.systems.scaling_tables import render
from fathom.benchmarks.untrained import untrained
from fathom.errors import FathomError
from fathom.exporter.bundle.export import export
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.manifest_file import read_manifest

SEED = 0
DEPTHS = (4, 16)
HISTORIES = (10, 20, 50, 100, 200, 500, 1_000)
ITEMS = (10_000, 100_000, 1_000_000)
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WORKERS = (1, 2)
#: Of the network whose histories grow.
NETWORK_ITEMS = 2_000
#: Items that histories in a larger catalogue are made of.
HISTORY_IDS = 10_000
#: Calls in flight, and connections, which the kernel spreads over the workers.
WORKERS_IN_FLIGHT, WORKERS_CONNECTIONS = 64, 16
MOST_CONNECTIONS = 4
#: More requests than are answered in a second, by two workers or one call at a time, so that none comes twice.
MOST_PER_S, MOST_ALONE_PER_S = 12_000, 3_000
WARM_UP_SHARE = 0.25
#: Test users that an index is judged by; the threads that build it.
JUDGED, BUILDERS = 500, 2
#: Numbers of each of the triad's three arrays, far more than a core's caches hold; how often it runs.
TRIAD_NUMBERS, TRIAD_RUNS = 1 << 25, 5
#: What a server may hold or take here is what is measured.
OPTIONS = ("--force",)


class Catalogue(NamedTuple):
    """A bundle with so many items, and how they are searched; ``ids``: of some of them, for histories."""

    items: int
    search: str
    path: Path
    ids: Sequence[str]


class Load(NamedTuple):
    """A closed loop of requests of one kind."""

    depth: int
    history: int = HISTORY
    in_flight: int = 1
    connections: int = 1


def triad_gb_s() -> float:
    """The best bandwidth of a = b + s * c in one pass on the server's core, GB/s; bytes are counted as STREAM does."""
    b, c = torch.ones(TRIAD_NUMBERS), torch.ones(TRIAD_NUMBERS)
    a, took = torch.zeros(TRIAD_NUMBERS), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with on_core(SERVER_CORE):
            for _ in range(TRIAD_RUNS):
                begin = time.perf_counter()
                torch.add(b, c, alpha=3.0, out=a)
                took.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return 3 * a.element_size() * TRIAD_NUMBERS / min(took) / 1e9


def messages_of(ids: Sequence[str], load: Load, seconds: float, seed: str) -> list[bytes]:
    """More than are answered in the time, each with a history of its own."""
    per_s = (MOST_ALONE_PER_S if load.in_flight == 1 else MOST_PER_S) * min(1.0, 2 * HISTORY / load.history)
    count = int(per_s * seconds) + load.in_flight + 20
    return made_up(ids, load.depth, count, f"{load} {seed}", load.history)


def figures(server: StartedServer, ids: Sequence[str], load: Load, seconds: float, seed: str) -> dict[str, Any]:
    """A closed loop after a warm-up; raises FathomError where nothing is answered at the depth that is asked for."""
    warm_up_s = WARM_UP_SHARE * seconds
    warm_up, messages = (messages_of(ids, load, each, f"{seed} {each}") for each in (warm_up_s, seconds))
    closed(server.address, warm_up, load.in_flight, load.connections, warm_up_s)
    before_s = server.cpu_s()
    report = closed(server.address, messages, load.in_flight, load.connections, seconds, keep=True)
    return summary(report, load, server.cpu_s() - before_s) | {"memory_mb": round(server.memory_mb(), 1)}


def summary(report: Report, load: Load, cpu_s: float) -> dict[str, Any]:
    """``cpu_s``: of the server. Stage times are medians; with several calls in flight they are those of a batch."""
    answers = [pb.RecommendResponse.FromString(each) for each in report.answers if each]
    timings = [answer.timings for answer in answers if answer.depth == load.depth]
    if not timings:
        raise FathomError(f"{load}: nothing was answered at this depth: {report.counts()}")
    elapsed_s = float(report.ended_s.max())
    return {
        "depth": load.depth,
        "history": load.history,
        "in_flight": load.in_flight,
        "engine_us": median(each.engine_us for each in timings),
        "retrieval_us": median(each.retrieval_us for each in timings),
        "cpu_us": round(cpu_s / len(answers) * 1e6, 1),
        "requests_per_s": round(report.per_s(), 1),
        "p50_ms": round(report.quantile_ms("OK", 0.5) or 0.0, 3),
        "p99_ms": round(report.quantile_ms("OK", 0.99) or 0.0, 3),
        "cores_busy": round(cpu_s / elapsed_s, 3),
        "client_busy": round(report.cpu_s / elapsed_s, 3),
        "not_as_asked": round(1 - len(timings) / len(report.due_s), 4),
    }


def network(options: Namespace) -> Path:
    """A bundle whose histories may be as long as the longest that is asked for."""
    longest = max(options.histories)
    path: Path = options.work / f"history-{longest}"
    if not (path / "manifest.json").exists():
        options.work.mkdir(parents=True, exist_ok=True)
        checkpoint, dataset = untrained(items=NETWORK_ITEMS, max_history=longest, span=longest)
        export(checkpoint, dataset, path, name="scaling")
    return path


def catalogues(options: Namespace) -> list[Catalogue]:
    """The bundle, and with more items flat and with an index."""
    own = catalogue_ids(options.bundle)
    found = [Catalogue(len(own), item_index.FLAT, options.bundle, own)]
    for items in sorted(options.items):
        made = {"bundle": options.bundle, "data": options.data, "work": options.work, "items": items}
        item_index.made(Namespace(**made, kinds=("pq",), threads=BUILDERS, judged=JUDGED))
        flat = options.work / f"items-{items}"
        ids = random.Random(SEED).sample(catalogue_ids(flat), min(items, HISTORY_IDS))
        found += [
            Catalogue(items, item_index.FLAT, flat, ids),
            Catalogue(items, "pq", flat.with_name(f"{flat.name}-pq"), ids),
        ]
    return found


def history_rows(path: Path, options: Namespace, turn: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every length at each depth."""
    ids = catalogue_ids(path)
    loads = [Load(depth, history) for depth in DEPTHS for history in options.histories]
    with on_core(SERVER_CORE), started(path, *OPTIONS) as server, on_core(CLIENT_CORE):
        for number in rng.permutation(len(loads)):
            row = figures(server, ids, loads[number], options.seconds, f"history {turn}")
            yield {"axis": "history", "items": len(ids), **row}


def item_rows(
    made: Sequence[Catalogue], options: Namespace, turn: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Every catalogue at each depth."""
    length = _length(options.bundle)
    for number in rng.permutation(len(made)):
        each = made[number]
        with on_core(SERVER_CORE), started(each.path, *OPTIONS) as server, on_core(CLIENT_CORE):
            for depth in DEPTHS:
                row = figures(server, each.ids, Load(depth, length), options.seconds, f"items {turn}")
                yield {"axis": "items", "items": each.items, "search": each.search, **row}


def in_flight_rows(options: Namespace, turn: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every number of calls at each depth."""
    ids, length = catalogue_ids(options.bundle), _length(options.bundle)
    loads = [Load(depth, length, each, min(each, MOST_CONNECTIONS)) for depth in DEPTHS for each in options.in_flight]
    with on_core(SERVER_CORE), started(options.bundle, *OPTIONS) as server, on_core(CLIENT_CORE):
        for number in rng.permutation(len(loads)):
            row = figures(server, ids, loads[number], options.seconds, f"in flight {turn}")
            yield {"axis": "in_flight", "items": len(ids), **row}


def worker_rows(options: Namespace, turn: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """So many workers, each with a core."""
    ids, length = catalogue_ids(options.bundle), _length(options.bundle)
    for workers in rng.permutation(options.workers).tolist():
        with (
            on_core(SERVER_CORE, workers),
            started(options.bundle, "--workers", str(workers), *OPTIONS) as server,
            on_core(CLIENT_CORE),
        ):
            for depth in DEPTHS:
                load = Load(depth, length, WORKERS_IN_FLIGHT, WORKERS_CONNECTIONS)
                row = figures(server, ids, load, options.seconds, f"workers {turn}")
                yield {"axis": "workers", "items": len(ids), "workers": workers, **row}


def _length(bundle: Path) -> int:
    return min(HISTORY, read_manifest(bundle).model.max_history)


def measure(options: Namespace) -> Iterator[Run]:
    """All four axes in every turn."""
    made, long = catalogues(options), network(options)
    rows: list[dict[str, Any]] = []
    triad = []
    for turn in range(options.turns):
        rng = np.random.default_rng(turn)
        triad.append(round(triad_gb_s(), 2))
        found = [
            *history_rows(long, options, turn, rng),
            *item_rows(made, options, turn, rng),
            *in_flight_rows(options, turn, rng),
            *worker_rows(options, turn, rng),
        ]
        rows += [{**row, "turn": turn} for row in found]
    manifest = read_manifest(options.bundle)
    config = {
        "bundle": manifest.name,
        "width": manifest.model.width,
        "network_items": NETWORK_ITEMS,
        "history": _length(options.bundle),
        "k": K,
        "seconds": options.seconds,
        "turns": options.turns,
    }
    yield Run(config, {"triad_gb_s": triad, "rows": rows}, SEED)


BENCHMARK = Benchmark(
    __doc__,
    "10 min, the bundle's data, two cores, faiss",
    {
        "bundle": Path,
        "--data": Path,
        "--work": Path("build/scaling"),
        "--histories": HISTORIES,
        "--items": ITEMS,
        "--in-flight": IN_FLIGHT,
        "--workers": WORKERS,
        "--seconds": 0.8,
        "--turns": 4,
    },
    measure,
    of_runs(render, "scaling"),
)
