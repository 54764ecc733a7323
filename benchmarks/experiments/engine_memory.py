"""The memory that engines take: a process of its own opens those of some depths, and runs each at the longest history.

    python -m fathom.benchmarks.experiments.engine_memory BUNDLE DEPTH...

Prints the most resident memory in MB before it opens the engines, and after it has run them.
"""

import sys
from pathlib import Path

import numpy as np

from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine


def peak_mb() -> float:
    """The most memory that was resident in this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main(path: str, *depths: str) -> None:
    """Open, run, print."""
    with Bundle.open(Path(path)) as bundle:
        import onnxruntime  # noqa: F401  what the library itself takes counts as before

        before = peak_mb()
        with open_engine(bundle, depths=[int(depth) for depth in depths]) as engine:
            items = np.ones((1, bundle.manifest.model.max_history), np.int64)
            for depth in engine.depths:
                engine.run(items, None, depth)
            print(before, peak_mb())


if __name__ == "__main__":
    main(*sys.argv[1:])
