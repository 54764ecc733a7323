"""The memory that a device needs: a process that opens a bundle as a profile says and answers, for large catalogues.

The network is untrained, of width 64 and 16 layers: what it answers does not matter here. A bundle is exported for
each catalogue and precision, and sliced for the profile. A process without gRPC, which asks for memory as a server
does, opens it, answers histories of 50 and 200 items at each depth, one and as many as the profile lets a batch hold,
and tells the most memory that was resident. For comparison, the deepest depth alone, and the whole of `fathom serve`.
"""

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems import peak_memory
from fathom.benchmarks.untrained import untrained
from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.engines.precision import Precision
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_vectors import ItemPrecision
from fathom.serving.memory import peak_mb as resident_peak_mb

CATALOGUES = (12_000, 1_000_000)
SEED = 0
REQUESTS = 20
#: Profile, precision of layers and of item vectors, and the megabytes that are to be enough.
CASES: tuple[tuple[str, Precision, ItemPrecision, int], ...] = (
    ("phone-low", "int8", "int8", 100),
    ("phone-low", "int8", "fp32", 100),
    ("phone-low", "int4", "fp32", 100),
    ("raspberry-pi-5", "int8", "fp32", 200),
    ("cloud-cpu", "fp32", "fp16", 300),
    ("cloud-cpu", "fp32", "fp32", 300),
)


def peak_mb(bundle: Path, profile: str, depths: tuple[int, ...]) -> float:
    """Of a process that answers at these depths."""
    command = [sys.executable, "-m", peak_memory.__name__, str(bundle), profile, *map(str, depths)]
    return round(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout), 1)


def server_mb(bundle: Path, profile: str, depths: tuple[int, ...]) -> float | None:
    """Of `fathom serve`, which is asked as the process is, one request at a time."""
    rng = np.random.default_rng(0)
    with Bundle.open(bundle) as opened:
        ids = opened.catalogue.ids
    with running_server(bundle, "--profile", profile, "--force") as server, Client(server.address) as client:
        for depth in depths:
            for length in (50, 200):
                for _ in range(REQUESTS):
                    client.recommend([ids[item] for item in rng.integers(0, len(ids), length)], depth=depth)
        return resident_peak_mb(server.pid)


def rows_of(items: int) -> list[dict[str, Any]]:
    """One row per case."""
    checkpoint, dataset = untrained(items=items)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, precision, items_in, enough) in enumerate(CASES):
            profile = load_profile(name)
            whole, cut = Path(folder) / f"{number}-whole", Path(folder) / f"{number}-cut"
            wanted = {"precision": precision, "item_precision": items_in}
            export(
                checkpoint, dataset, whole, name="memory", max_loss=1.0, precision=precision, item_precision=items_in
            )
            manifest = slice_bundle(whole, profile, cut)
            depths = tuple(sorted(manifest.depths))
            together, alone = peak_mb(cut, name, depths), peak_mb(cut, name, depths[-1:])
            rows.append(
                {
                    "items": items,
                    "profile": name,
                    **wanted,
                    "depths": depths,
                    "peak_mb": together,
                    "enough_mb": enough,
                    "server_mb": server_mb(cut, name, depths),
                    "deepest_alone_mb": alone,
                    "times_the_deepest": round(together / alone, 3),
                    "bundle_mb": round(sum(entry.bytes for entry in manifest.files.values()) / 2**20, 1),
                }
            )
    return rows


def measure(options: Namespace) -> Iterator[Run]:
    """Every case for every catalogue."""
    yield Run({"items": options.items}, {"rows": [row for items in options.items for row in rows_of(items)]}, SEED)


def render(run: StoredRun) -> str:
    """A row per case."""
    return paragraphs(
        "## Memory on a device",
        "The most resident memory of a process without a server that opens a bundle as the profile says and answers"
        " at every depth; width 64, histories up to 200 items. «At most» is the aim for 12,000 items.",
        table_of(
            [{"server_mb": None, **row} for row in run["result"]["rows"]],
            "items={items:,} | profile={profile} | layers={precision} | vectors={item_precision}"
            " | depths={depths} | peak MB={peak_mb:,.1f} | whole server={server_mb:,.1f} | at most={enough_mb}"
            " | deepest alone={deepest_alone_mb:,.1f} | times that={times_the_deepest:.2f}"
            " | bundle MB={bundle_mb:.0f}",
        ),
    )


BENCHMARK = Benchmark(__doc__, "20 min, no bundle", {"--items": CATALOGUES}, measure, of_runs(render, "memory"))
