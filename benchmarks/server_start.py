"""How long `fathom serve` takes until it answers, and how much memory it then holds.

    python -m fathom.benchmarks.server_start build/ml-100k/bundle [--repetitions 5]

Writes results/server_start.json. Refuses to store a run in which the server has torch loaded.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from fathom.client import Client
from fathom.errors import FathomError, UnavailableError

REQUESTS = 1_000
HISTORY = 50
# Libraries that no server may load, by what their shared objects are called in its memory map.
OFFLINE_ONLY = {"torch": "libtorch", "polars": "_polars_runtime"}


@dataclass(frozen=True)
class Started:
    """A server that has just said that it is ready, ``ready_s`` seconds after its process was started."""

    address: str
    pid: int
    ready_s: float


@dataclass(frozen=True)
class Start:
    """One start: seconds until ready and until the first answer, and resident memory before and after requests."""

    ready_s: float
    answered_s: float
    ready_mb: float
    served_mb: float
    threads: int


@contextmanager
def started(bundle: Path, *options: str) -> Iterator[Started]:
    """Run `fathom serve` on a free port in a process of its own; raises UnavailableError when it does not get ready."""
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--json", *options]
    begin = time.perf_counter()
    with subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise UnavailableError(f"{bundle}: the server did not start; its words are above")
        try:
            yield Started(json.loads(ready)["address"], process.pid, time.perf_counter() - begin)
        finally:
            process.terminate()


def measure_start(bundle: Path, requests: int = REQUESTS) -> Start:
    """Start once, ask ``requests`` times; raises FathomError when the server has loaded what it must not."""
    items = _some_items(bundle)
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
        return Start(server.ready_s, answered_s, ready_mb, process.memory_info().rss / 2**20, process.num_threads())


def _some_items(bundle: Path) -> list[str]:
    ids = json.loads((bundle / "items" / "catalogue.json").read_bytes())["ids"]
    return [str(item) for item in ids[:HISTORY]]


def main(argv: list[str] | None = None) -> None:
    """Measure, print, store."""
    from fathom.benchmarks.record import save_run

    parser = argparse.ArgumentParser(description="Start-to-ready time and memory of fathom serve.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(argv)
    starts = [measure_start(options.bundle) for _ in range(options.repetitions)]
    summary = {name: round(median(asdict(start)[name] for start in starts), 3) for name in asdict(starts[0])}
    for name, value in summary.items():
        print(f"{name:>12} {value:g}")
    path = save_run(
        "server_start",
        config={"bundle": options.bundle.name, "repetitions": options.repetitions, "requests": REQUESTS},
        result={"median": summary, "runs": [asdict(start) for start in starts], "loads_torch": False},
    )
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
