"""Depth 0 on this machine: microseconds of an answer, memory of its tables, and what counting costs beside a search.

Random tables of 64 neighbours per item and a window that takes in the whole history, which is the worst that a bundle
can ask; the best ten unseen items. Each answer is timed alone, on a history of its own. Then searches for the best ten
with and without the counts of a history of 50 items beside them, in turn in a random order, on one thread: first what
is counted is worked out, then it is added in the search.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.retriever import FlatRetriever

SEED = 0
CATALOGUES = (1_682, 12_000, 100_000, 1_000_000)
HISTORIES = (1, 10, 50)
NEIGHBOURS = 64
DECAY = 0.9
BEST = 10
WIDTH = 64
BATCHES = (1, 16)
WARM_UP = 20

Indices = NDArray[np.int64]


def random_counting(rng: np.random.Generator, items: int) -> Counting:
    """Every item has as many neighbours, anywhere in the catalogue; popularity falls as Zipf says."""
    pairs = items * NEIGHBOURS
    return Counting(
        np.arange(0, pairs + 1, NEIGHBOURS),
        rng.integers(0, items, pairs, dtype=np.int32),
        1 - rng.random(pairs, dtype=np.float32),
        (1 / np.arange(1, items + 1)).astype(np.float32),
        window=max(HISTORIES),
        decay=DECAY,
    )


def table_mb(counting: Counting) -> float:
    """Megabytes of the tables as they are held, with the order by popularity."""
    return round(sum(each.nbytes for each in vars(counting).values() if isinstance(each, np.ndarray)) / 2**20, 1)


def answers(counting: Counting, rng: np.random.Generator, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of an answer of depth 0, a row per length of the history."""
    items, rows = len(counting.popularity), []
    for length in HISTORIES:
        spent_us = np.empty(WARM_UP + rounds)
        for turn in range(len(spent_us)):
            history = rng.integers(0, items, length)
            begin_s = perf_counter()
            counting.best(history, BEST, ItemFilter(exclude=history))
            spent_us[turn] = (perf_counter() - begin_s) * 1e6
        median, p99 = np.quantile(spent_us[WARM_UP:], [0.5, 0.99]).round(1).tolist()
        rows.append({"items": items, "history": length, "median_us": median, "p99_us": p99})
    return rows


def beside(counting: Counting, rng: np.random.Generator, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a search alone, and what counting adds to it, a row per size of the batch."""
    items = len(counting.popularity)
    vectors = rng.standard_normal((items, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    retriever, rows = FlatRetriever(ItemVectors(vectors)), []
    for batch in BATCHES:
        spent_us = np.empty((WARM_UP + rounds, 3))
        for turn in range(len(spent_us)):
            histories = list(rng.integers(0, items, (batch, max(HISTORIES))))
            spent_us[turn] = one_turn(counting, retriever, vectors[rng.integers(0, items, batch)], histories, rng)
        spent_us = spent_us[WARM_UP:]
        added = spent_us[:, 1:] - np.stack((np.zeros(rounds), spent_us[:, 0]), axis=1)
        figures = np.median(np.hstack((spent_us[:, :1], added)), axis=0).round(1).tolist()
        rows.append(
            {"items": items, "batch": batch} | dict(zip(("search_us", "shares_us", "add_us"), figures, strict=True))
        )
    return rows


def one_turn(
    counting: Counting,
    retriever: FlatRetriever,
    users: NDArray[np.float32],
    histories: list[Indices],
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """Microseconds of the search without counts, of the counts, and of the search with them."""
    ks, filters = [BEST] * len(users), [ItemFilter(exclude=history) for history in histories]
    shares = [counting.shares(history) for history in histories]
    steps: list[Callable[[], object]] = [
        lambda: retriever.search(users, ks, filters),
        lambda: [counting.shares(history) for history in histories],
        lambda: retriever.search(users, ks, filters, shares),
    ]
    spent_us = [0.0] * len(steps)
    for number in rng.permutation(len(steps)).tolist():
        begin_s = perf_counter()
        steps[number]()
        spent_us[number] = (perf_counter() - begin_s) * 1e6
    return spent_us[0], spent_us[1], spent_us[2]


def measure(options: Namespace) -> Iterator[Run]:
    """Every catalogue: depth 0 alone, its tables, and counting beside the search."""
    rng = np.random.default_rng(SEED)
    alone, tables, searches = [], [], []
    for items in options.items:
        counting = random_counting(rng, items)
        tables.append({"items": items, "mb": table_mb(counting)})
        alone += answers(counting, rng, options.rounds)
        searches += beside(counting, rng, options.searches)
    config = {"items": options.items, "histories": HISTORIES, "neighbours": NEIGHBOURS, "best": BEST, "width": WIDTH}
    config |= {"rounds": options.rounds, "searches": options.searches}
    yield Run(config, {"answers": alone, "tables": tables, "beside_a_search": searches}, SEED)


def render(run: StoredRun) -> str:
    """Answers of depth 0, its memory, and what it adds to a search."""
    result, config = run["result"], run["config"]
    sizes = [f"{table['mb']:,.1f} MB for {table['items']:,} items" for table in result["tables"]]
    return paragraphs(
        "## Depth 0, and counting beside a search",
        f"The best {config['best']} unseen items by counting alone, with {config['neighbours']} neighbours per item and"
        f" every item of the history counted; the tables take {', '.join(sizes)}.",
        table_of(
            result["answers"], "items={items:,} | history={history} | median µs={median_us:,.0f} | p99 µs={p99_us:,.0f}"
        ),
        f"What counting a history of {max(config['histories'])} items costs beside a search, per batch:",
        table_of(
            result["beside_a_search"],
            "items={items:,} | batch={batch} | search µs={search_us:,.0f} | counting µs={shares_us:,.0f}"
            " | more in the search µs={add_us:,.0f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "3 min, no bundle",
    {"--items": CATALOGUES, "--rounds": 2_000, "--searches": 200},
    measure,
    of_runs(render, "counting"),
)
