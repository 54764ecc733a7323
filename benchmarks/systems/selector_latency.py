"""Time of one selector decision, features included, on this machine.

Random histories of a popularity-skewed catalogue; each decision is timed alone, on its own history, so that caches
see what a server's would. Then its share of a whole request at depth 4, alone in the server's pipeline on the bundle.
"""

import asyncio
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery, Timing
from fathom.runtime.settings import PipelineSettings
from fathom.selector.choice import DepthRequest
from fathom.selector.chooser import DepthChooser
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import SelectorTables, measure, measure_all

SEED = 1
LENGTHS = (10, 200)
CATALOGUES = (1_682, 12_000)
WIDTH = 64
HISTORIES = 1_000
WARM_UP = 500
REQUESTS = 2_000
SERVED_DEPTHS = (4, 8, 12, 16)

History = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True)
class Latency:
    """Quantiles of the time of one decision, and the medians of its three steps, in microseconds.

    ``idle_p99_us``: the 99th percentile of as much arithmetic as takes the median, which is the machine's own doing.
    """

    items: int
    history: int
    median_us: float
    p99_us: float
    p999_us: float
    features_us: float
    complexity_us: float
    policy_us: float
    idle_p99_us: float


def random_histories(rng: np.random.Generator, n_items: int, lengths: NDArray[np.int64]) -> list[History]:
    """Histories (int32 items, int64 rising seconds) whose items follow a Zipf-like popularity."""
    share = 1.0 / np.arange(1, n_items + 1)
    share /= share.sum()
    histories = []
    for length in lengths:
        items = rng.choice(n_items, size=length, p=share).astype(np.int32)
        seconds = 1_700_000_000 + np.cumsum(rng.exponential(3_600, size=length)).astype(np.int64)
        histories.append((items, seconds))
    return histories


def random_tables(rng: np.random.Generator, n_items: int) -> SelectorTables:
    """Tables of a catalogue with Zipf-like training counts and random unit vectors."""
    counts = (100_000 / np.arange(1, n_items + 1)).astype(np.int64)
    vectors = rng.standard_normal((n_items, WIDTH)).astype(np.float32)
    entropy = rng.uniform(0, 5, n_items).astype(np.float32)
    return SelectorTables.build(counts, ItemVectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), entropy)


def measure_latency(n_items: int, length: int, decisions: int) -> Latency:
    """Time ``decisions`` decisions over histories of one length, after a warm-up that is not counted."""
    rng = np.random.default_rng([SEED, n_items, length])
    tables = random_tables(rng, n_items)
    rows = measure_all(random_histories(rng, n_items, rng.integers(5, 201, size=500)), tables)
    users = np.arange(len(rows))
    model = ComplexityModel.fit(rows, rng.random(len(rows)), users, users >= 0, 0.05)
    histories = random_histories(rng, n_items, np.full(HISTORIES, length))
    profile = load_profile("edge")
    chooser = DepthChooser(None, SERVED_DEPTHS, policy="rule", alpha=0.01, at_share=model.at_share)
    clock = time.perf_counter_ns
    marks = np.empty((WARM_UP + decisions, 4), dtype=np.int64)
    for row in range(len(marks)):
        items, seconds = histories[row % HISTORIES]
        ids = items.astype(np.int64)
        start = clock()
        features = measure(items, seconds, tables)
        measured = clock()
        complexity = model.score(features)
        scored = clock()
        chooser.choose(DepthRequest(profile, ids, lambda **_: (features, complexity)))  # noqa: B023
        marks[row] = start, measured, scored, clock()
    marks = marks[WARM_UP:]
    steps_us = np.diff(marks, axis=1) / 1_000
    total_us = (marks[:, 3] - marks[:, 0]) / 1_000
    quantiles = np.quantile(total_us, [0.5, 0.99, 0.999])
    figures = [round(float(figure), 2) for figure in (*quantiles, *np.median(steps_us, axis=0))]
    figures.append(round(_idle_p99_us(figures[0], decisions), 2))
    return Latency(n_items, length, *figures)


def _idle_p99_us(median_us: float, runs: int) -> float:
    """The 99th percentile of a loop over numbers, without memory to speak of, that takes so long in the median."""
    clock, marks = time.perf_counter_ns, np.empty((runs, 2), dtype=np.int64)

    def run(count: int) -> float:
        for row in range(runs):
            start = clock()
            for _ in range(count):
                pass
            marks[row] = start, clock()
        return float(np.median(marks[:, 1] - marks[:, 0])) / 1_000

    count = 1_000
    count = max(1, round(count * median_us / run(count)))
    run(count)
    return float(np.quantile(marks[:, 1] - marks[:, 0], 0.99)) / 1_000


@dataclass(frozen=True)
class Request:
    """Medians of whole requests at depth 4, in microseconds, and the part of the selector in them."""

    history: int
    select_us: float
    total_us: float
    share: float


async def measure_requests(bundle: Bundle, requests: int) -> list[Request]:
    """One request after the other, from a history's indices to the best ten, per length."""
    rng = np.random.default_rng(SEED)
    profile = load_profile("cloud")
    found = []
    async with Pipeline(bundle, open_engine(bundle), settings=PipelineSettings(policy="rule")) as pipeline:
        for length in LENGTHS:
            timings: list[Timing] = []
            for items, seconds in random_histories(rng, len(bundle.vectors), np.full(WARM_UP + requests, length)):
                answer = await pipeline.recommend(IndexedQuery(items, 10, profile, timestamps=seconds, depth=4))
                timings.append(answer.timing)
            select, total = (
                median(getattr(timing, name) for timing in timings[WARM_UP:]) for name in ("select_us", "total_us")
            )
            found.append(Request(length, select, total, round(select / total, 4)))
    return found


def run(decisions: int) -> list[Latency]:
    """Every catalogue with every length."""
    return [measure_latency(n_items, length, decisions) for n_items in CATALOGUES for length in LENGTHS]


def _measure(options: Namespace) -> Iterator[Run]:
    """Decisions alone, then their share of whole requests."""
    rows = run(options.decisions)
    with Bundle.open(options.bundle) as bundle:
        requests = asyncio.run(measure_requests(bundle, REQUESTS))
    config = {
        "decisions": options.decisions,
        "width": WIDTH,
        "lengths": LENGTHS,
        "catalogues": CATALOGUES,
        "timestamps": True,
        "requests": REQUESTS,
    }
    yield Run(config, {"rows": [asdict(row) for row in rows], "requests": [asdict(each) for each in requests]}, SEED)


def render(run: StoredRun) -> str:
    """A row per catalogue and history, and the share of a request."""
    requests = run["result"].get("requests", [])
    said = [f"{r['share']:.1%} of {r['total_us']:,.0f} µs at history {r['history']}" for r in requests]
    return paragraphs(
        "## One decision of the selector, features included",
        table_of(
            run["result"]["rows"],
            "items={items:,} | history={history} | median µs={median_us:.1f} | p99 µs={p99_us:.1f}"
            " | p99.9 µs={p999_us:.1f} | p99 of an empty loop with that median, µs={idle_p99_us:.1f}",
        ),
        f"Its share of a whole request at depth 4, alone in the pipeline: {', '.join(said)}.",
    )


BENCHMARK = Benchmark(
    __doc__, "2 min", {"bundle": Path, "--decisions": 20_000}, _measure, of_runs(render, "selector_latency")
)
