"""What reasons cost: microseconds of a request with and without them, at depth 0 and above.

Alone in the server's pipeline, on one thread, without the prefix cache: random histories, each asked for with and
without reasons in a random order. Above depth 0 the network runs once more for every item that is left out.
"""

import asyncio
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.settings import PipelineSettings

SEED = 0
HISTORIES = (10, 50)
BEST = 10
WARM_UP = 20


async def cost(pipeline: Pipeline, depth: int, length: int, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """A row: medians of both, the 99th percentile with reasons, and how many reasons an item has."""
    items, profile = len(pipeline.bundle.catalogue), load_profile("cloud")
    spent_us, named = np.empty((WARM_UP + rounds, 2)), 0
    for turn in range(len(spent_us)):
        history = rng.choice(items, min(length, items), replace=False)
        for reasons in rng.permutation(2).tolist():
            query = IndexedQuery(history, BEST, profile, depth=depth, include_reasons=bool(reasons))
            begin_s = time.perf_counter()
            answer = await pipeline.recommend(query)
            spent_us[turn, reasons] = (time.perf_counter() - begin_s) * 1e6
            named += sum(map(len, answer.reasons))
    spent_us = spent_us[WARM_UP:]
    plain, asked = np.median(spent_us, axis=0).round(1).tolist()
    p99 = round(float(np.quantile(spent_us[:, 1], 0.99)), 1)
    each = round(named / ((WARM_UP + rounds) * BEST), 2)
    return {"depth": depth, "history": length, "plain_us": plain, "us": asked, "p99_us": p99, "per_item": each}


async def costs(bundle: Bundle, depths: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row per depth and length of the history."""
    rng, settings = np.random.default_rng(SEED), PipelineSettings(reuse_mb=0)
    with open_engine(bundle) as engine:
        async with Pipeline(bundle, engine, settings=settings) as pipeline:
            served = [depth for depth in depths if depth in pipeline.depths]
            return [await cost(pipeline, depth, length, rounds, rng) for depth in served for length in HISTORIES]


def measure(options: Namespace) -> Iterator[Run]:
    """One bundle; depths that it does not have are left out."""
    bundle = Bundle.open(options.bundle)
    rows = asyncio.run(costs(bundle, options.depths, options.rounds))
    config = {"bundle": bundle.manifest.name, "items": len(bundle.catalogue), "best": BEST, "rounds": options.rounds}
    yield Run(config, {"rows": rows}, SEED)


def render(run: StoredRun) -> str:
    """A row per depth and length of the history."""
    config = run["config"]
    return paragraphs(
        "## Reasons",
        f"Bundle {config['bundle']}, {config['items']:,} items, the best {config['best']}: a request alone in the"
        " pipeline with and without reasons, on one thread.",
        table_of(
            run["result"]["rows"],
            "depth={depth} | history={history} | without µs={plain_us:,.0f} | with reasons µs={us:,.0f}"
            " | p99 µs={p99_us:,.0f} | reasons per item={per_item:.1f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "1 min",
    {"bundle": Path, "--depths": (0, 4, 16), "--rounds": 200},
    measure,
    of_runs(render, "reasons"),
)
