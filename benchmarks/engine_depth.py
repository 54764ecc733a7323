"""Wall time of one request inside the engine, per depth and history length, on one thread.

    python -m fathom.benchmarks.engine_depth BUNDLE [--repetitions 200]

Histories are drawn from the bundle's items by popularity: an engine's time depends on their length only. Every round
runs all (depth, length) pairs once in a new random order, so that a slower minute of the machine hits all of them.
Writes ``results/engine_depth.json``.
"""

import argparse
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.record import run, save_run
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.engine import Engine, open_engine

HISTORIES = (10, 50, 200)
WARM_UP_ROUNDS = 20

Pair = tuple[int, int]
"""(depth, history)"""


def measure(
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


def main(arguments: list[str] | None = None) -> Path:
    """Measure, print a table, store the run; returns the stored file."""
    parser = argparse.ArgumentParser(
        prog="python -m fathom.benchmarks.engine_depth", description=__doc__.split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for the stored run")
    chosen = parser.parse_args(arguments)
    with Bundle.open(chosen.bundle) as bundle:
        longest = bundle.manifest.model.max_history
        histories = tuple(sorted({min(length, longest) for length in HISTORIES}))
        engine = open_engine(bundle, threads=1)
        spent = measure(engine, bundle, histories, repetitions=chosen.repetitions, seed=chosen.seed)
        engine.close()
        rows = summarise(spent)
        config = {
            "bundle": bundle.manifest.name,
            "bundle_version": bundle.manifest.version,
            "strategy": bundle.manifest.strategy,
            "model": bundle.manifest.model.model_dump(mode="json"),
            "engine": engine.name,
            "threads": 1,
            "batch": 1,
            "repetitions": chosen.repetitions,
        }
    print(f"{'history':>8} {'depth':>6} {'median µs':>10} {'p10':>8} {'p90':>8} {'of deepest':>11}")
    for row in rows:
        print(
            f"{row['history']:>8} {row['depth']:>6} {row['median_us']:>10.1f} {row['p10_us']:>8.1f}"
            f" {row['p90_us']:>8.1f} {row['share_of_deepest']:>11.3f}"
        )
    return save_run("engine_depth", config=config, result={"rows": rows}, seed=chosen.seed, folder=chosen.results)


def _request(
    bundle: Bundle, length: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    share = (bundle.popularity + 1) / (bundle.popularity + 1).sum()
    items = rng.choice(len(share), size=(1, length), p=share).astype(np.int64) + 1
    if not bundle.manifest.model.uses_timestamps:
        return items, None
    hours = np.cumsum(rng.integers(1, 48, size=(1, length)), axis=1)
    return items, 1_600_000_000 + 3_600 * hours


if __name__ == "__main__":
    run(main)
