"""The peak memory of a process that opens a bundle and answers: python -m ... BUNDLE PROFILE DEPTH..."""

import asyncio
import sys
import time
from pathlib import Path

import numpy as np

from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.settings import PipelineSettings
from fathom.serving.memory import use_memory_sparingly

#: Time enough for the slowest device: without a deadline requests that wait for seconds are refused.
PATIENCE_S = 600.0


async def answer(path: Path, profile_name: str, depths: list[int]) -> None:
    """Short and long histories at each depth, one and as many as the profile lets a batch hold."""
    bundle, profile = Bundle.open(path), load_profile(profile_name)
    rng = np.random.default_rng(0)
    engine = open_engine(bundle, threads=profile.threads, depths=depths)
    async with Pipeline(bundle, engine, settings=PipelineSettings.for_profile(profile)) as pipeline:
        for depth in depths:
            for length in (50, 200):
                for together in (1, profile.max_batch):
                    histories = rng.integers(0, bundle.manifest.items, (together, length))
                    by_s = time.monotonic() + PATIENCE_S
                    queries = [IndexedQuery(each, 10, profile, depth=depth, deadline_s=by_s) for each in histories]
                    await asyncio.gather(*map(pipeline.recommend, queries))


if __name__ == "__main__":
    use_memory_sparingly()
    asyncio.run(answer(Path(sys.argv[1]), sys.argv[2], [int(depth) for depth in sys.argv[3:]]))
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) / 1024)
