"""Wall time of one request inside the engine, per depth and history length, on one thread.

Histories are drawn from the bundle's items by popularity: an engine's time depends on their length only. Every round
runs all (depth, length) pairs once in a new random order, so that a slower minute of the machine hits all of them.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine

HISTORIES = (10, 50, 200)
WARM_UP_ROUNDS = 20

Pair = tuple[int, int]
"""(depth, history)"""


def times_us(
    engine: Engine, bundle: Bundle, histories: tuple[int, ...], *, repetitions: int, seed: int
) -> dict[Pair, NDArray[np.float64]]:
    """Microseconds of each repetition of one request, float64 (repetitions,), per depth and history length."""
    rng = np.random.default_rng(seed)
    requests = {length: _request(bundle, length, rng) for length in histories}
    pairs = [(depth, length) for depth in engine.depths for length in histories]
    spent = {pair: np.empty(repetitions) for pair in pairs}
    for turn in range(-WARM_UP_ROUNDS, repetitions):
        for i in rng.permutation(len(pairs)):
            depth, length = pairs[i]
            items, timestamps = requests[length]
            started = perf_counter_ns()
            engine.run(items, timestamps, depth)
            elapsed_us = (perf_counter_ns() - started) / 1e3
            if turn >= 0:
                spent[pairs[i]][turn] = elapsed_us
    return spent


def summarise(spent: dict[Pair, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """One row per (history, depth): quantiles in microseconds, and the median as a share of the deepest depth's."""
    deepest = max(depth for depth, _ in spent)
    rows = []
    for (depth, length), values in sorted(spent.items(), key=lambda entry: entry[0][::-1]):
        p10, median, p90 = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        share = median / float(np.median(spent[deepest, length]))
        rows.append(
            {
                "history": length,
                "depth": depth,
                "median_us": round(median, 1),
                "p10_us": round(p10, 1),
                "p90_us": round(p90, 1),
                "share_of_deepest": round(share, 4),
            }
        )
    return rows


def _request(
    bundle: Bundle, length: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    share = (bundle.popularity + 1) / (bundle.popularity + 1).sum()
    items = rng.choice(len(share), size=(1, length), p=share).astype(np.int64) + 1
    if not bundle.manifest.model.uses_timestamps:
        return items, None
    hours = np.cumsum(rng.integers(1, 48, size=(1, length)), axis=1)
    return items, 1_600_000_000 + 3_600 * hours


def measure(options: Namespace) -> Iterator[Run]:
    """Every depth and history length."""
    with Bundle.open(options.bundle) as bundle, open_engine(bundle, threads=1) as engine:
        manifest = bundle.manifest
        histories = tuple(sorted({min(length, manifest.model.max_history) for length in HISTORIES}))
        spent = times_us(engine, bundle, histories, repetitions=options.repetitions, seed=options.seed)
        config = {
            "bundle": manifest.name,
            "bundle_version": manifest.version,
            "strategy": manifest.strategy,
            "model": manifest.model.model_dump(mode="json"),
            "engine": engine.name,
            "threads": 1,
            "batch": 1,
            "repetitions": options.repetitions,
        }
    yield Run(config, {"rows": summarise(spent)}, options.seed)


def render(run: StoredRun) -> str:
    """A row per history and depth."""
    return paragraphs(
        "## One request inside the engine, one thread",
        table_of(
            run["result"]["rows"],
            "history={history} | depth={depth} | median µs={median_us:,.0f} | p90 µs={p90_us:,.0f}"
            " | share of the deepest={share_of_deepest:.2f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__, "1 min", {"bundle": Path, "--repetitions": 200, "--seed": 0}, measure, of_runs(render, "engine_depth")
)
