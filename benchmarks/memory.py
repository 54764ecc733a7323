"""The memory that a device needs: a process that opens a bundle as a profile says and answers, for large catalogues.

    python -m fathom.benchmarks.memory [--items 12000 1000000]

The network is untrained, of width 64 and 16 layers: what it answers does not matter here. A bundle is exported for
each catalogue and precision, and sliced for the profile. A process without gRPC, which asks for memory as a server
does, opens it, answers histories of 50 and 200 items at each depth, one and as many as the profile lets a batch hold,
and tells the most memory that was resident. For comparison, the deepest depth alone. Writes results/memory.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.untrained import untrained
from fathom.edge_profiles.profile import load_profile
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.engines.precision import Precision
from fathom.runtime.item_vectors import ItemPrecision

CATALOGUES = (12_000, 1_000_000)
SEED = 0
#: Profile, precision of layers and of item vectors, and the megabytes that are to be enough.
CASES: tuple[tuple[str, Precision, ItemPrecision, int], ...] = (
    ("phone-low", "int8", "int8", 100),
    ("phone-low", "int8", "fp32", 100),
    ("phone-low", "int4", "fp32", 100),
    ("raspberry-pi-5", "int8", "fp32", 200),
    ("cloud-cpu", "fp32", "fp16", 300),
    ("cloud-cpu", "fp32", "fp32", 300),
)

_PROCESS = """
import asyncio, sys
from pathlib import Path
import numpy as np
from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.engine import open_engine
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.settings import PipelineSettings
from fathom.runtime.query import IndexedQuery
from fathom.serving.memory import use_memory_sparingly

use_memory_sparingly()

async def answer():
    bundle, profile = Bundle.open(Path(sys.argv[1])), load_profile(sys.argv[2])
    depths = [int(depth) for depth in sys.argv[3:]]
    rng = np.random.default_rng(0)
    engine = open_engine(bundle, threads=profile.threads, depths=depths)
    async with Pipeline(bundle, engine, settings=PipelineSettings.for_profile(profile)) as pipeline:
        for depth in depths:
            for length in (50, 200):
                for together in (1, profile.max_batch):
                    histories = rng.integers(0, bundle.manifest.items, (together, length))
                    queries = [IndexedQuery(history, 10, profile, depth=depth) for history in histories]
                    await asyncio.gather(*map(pipeline.recommend, queries))

asyncio.run(answer())
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(int(peak.split()[1]) / 1024)
"""


def peak_mb(bundle: Path, profile: str, depths: tuple[int, ...]) -> float:
    """Of a process that answers at these depths."""
    command = [sys.executable, "-c", _PROCESS, str(bundle), profile, *map(str, depths)]
    return round(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout), 1)


def measure(items: int) -> list[dict[str, Any]]:
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
                    "deepest_alone_mb": alone,
                    "times_the_deepest": round(together / alone, 3),
                    "bundle_mb": round(sum(entry.bytes for entry in manifest.files.values()) / 2**20, 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=list(CATALOGUES))
    chosen = parser.parse_args()
    rows = [row for items in chosen.items for row in measure(items)]
    print(f"stored in {save_run('memory', config={'items': chosen.items}, result={'rows': rows}, seed=SEED)}")


if __name__ == "__main__":
    run(main)
