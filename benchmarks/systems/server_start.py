"""How long `fathom serve` takes until it answers, and how much memory it then holds.
Refuses to store a run in which the server has torch loaded.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import catalogue_ids, started
from fathom.client import Client
from fathom.errors import FathomError

REQUESTS = 1_000
HISTORY = 50
# Libraries that no server may load, by what their shared objects are called in its memory map.
OFFLINE_ONLY = {"torch": "libtorch", "polars": "_polars_runtime"}


@dataclass(frozen=True)
class StartFigures:
    """One start: seconds until ready and until the first answer, and resident memory before and after requests."""

    ready_s: float
    answered_s: float
    ready_mb: float
    served_mb: float
    threads: int


def measure_start(bundle: Path, requests: int = REQUESTS) -> StartFigures:
    """Start once, ask ``requests`` times; raises FathomError when the server has loaded what it must not."""
    items = catalogue_ids(bundle)[:HISTORY]
    begin = time.perf_counter()
    with started(bundle) as server, Client(server.address) as client:
        client.recommend(items)
        answered_s = time.perf_counter() - begin
        process = psutil.Process(server.pid)
        ready_mb = process.memory_info().rss / 2**20
        depths = client.bundle().depths
        for number in range(requests):
            client.recommend(items, depth=depths[number % len(depths)])
        maps = [each.path for each in process.memory_maps()]
        loaded = [name for name, trace in OFFLINE_ONLY.items() if any(trace in path for path in maps)]
        if loaded:
            raise FathomError(f"the server has loaded {', '.join(loaded)}, which belongs to the offline half")
        return StartFigures(
            server.ready_s, answered_s, ready_mb, process.memory_info().rss / 2**20, process.num_threads()
        )


def measure(options: Namespace) -> Iterator[Run]:
    """Medians over starts."""
    starts = [asdict(measure_start(options.bundle)) for _ in range(options.repetitions)]
    summary = {name: round(median(start[name] for start in starts), 3) for name in starts[0]}
    config = {"bundle": options.bundle.name, "repetitions": options.repetitions, "requests": REQUESTS}
    yield Run(config, {"median": summary, "runs": starts, "loads_torch": False})


def render(run: StoredRun) -> str:
    """One sentence."""
    median = run["result"]["median"]
    return (
        f"Start to ready {median['ready_s']:.2f} s; resident memory {median['ready_mb']:.0f} MB when ready,"
        f" {median['served_mb']:.0f} MB after {run['config']['requests']:,} requests."
    )


BENCHMARK = Benchmark(__doc__, "1 min", {"bundle": Path, "--repetitions": 5}, measure, of_runs(render, "server_start"))
