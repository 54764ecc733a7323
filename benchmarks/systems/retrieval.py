"""The best 100 of a million items: Fathom's retriever beside faiss, and its share of a request.

Random unit vectors of width 64, one thread. Fathom without a filter and with one that removes 90 % of the items; faiss
(IndexFlatIP, which is exact too) without. Every round runs all of them in a new random order. Then requests of
50 items through the pipeline of a bundle whose catalogue was filled up to 12,000 and to a million items: what part of
the time is retrieval. Needs the extra faiss.
"""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.edge_profiles.profile import load_profile
from fathom.errors import MissingExtraError
from fathom.runtime.bundle import Bundle
from fathom.runtime.catalogue import Catalogue
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.retriever import FlatRetriever
from fathom.selector.features import SelectorTables

SEED = 0
WIDTH = 64
BEST = 100
BATCHES = (1, 32)
REMOVED = 0.9
REQUESTS = 100
CATALOGUES = (12_000, 1_000_000)

Floats = NDArray[np.float32]


def unit_vectors(rng: np.random.Generator, count: int, width: int = WIDTH) -> Floats:
    """Random directions, float32 (count, width)."""
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def searches(vectors: Floats, rng: np.random.Generator) -> dict[str, Callable[[Floats], Any]]:
    """Name -> a search for the best of each row."""
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "faiss") from None
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    ours = FlatRetriever(ItemVectors(vectors))
    kept = ItemFilter(mask=rng.random(len(vectors)) >= REMOVED)
    return {
        "faiss flat": lambda users: index.search(users, BEST),
        "fathom": lambda users: ours.search(users, [BEST] * len(users), [ItemFilter()] * len(users)),
        "fathom, 90 % removed": lambda users: ours.search(users, [BEST] * len(users), [kept] * len(users)),
    }


def same_items(found: dict[str, Callable[[Floats], Any]], users: Floats) -> float:
    """The share of the best items that Fathom and faiss have in common."""
    theirs, ours = found["faiss flat"](users)[1], found["fathom"](users)
    return float(np.mean([len(set(a) & set(b[0])) / BEST for a, b in zip(theirs.tolist(), ours, strict=True)]))


def rows(found: dict[str, Callable[[Floats], Any]], rng: np.random.Generator, rounds: int) -> list[dict[str, Any]]:
    """Median milliseconds of a batch."""
    cells = [(name, batch) for name in found for batch in BATCHES]
    spent = np.empty((len(cells), rounds))
    for turn in range(-1, rounds):
        users = unit_vectors(rng, max(BATCHES))
        for number in rng.permutation(len(cells)):
            name, batch = cells[number]
            begin = perf_counter()
            found[name](users[:batch])
            if turn >= 0:
                spent[number, turn] = perf_counter() - begin
    median = (np.median(spent, axis=1) * 1e3).tolist()
    theirs = {batch: took for (name, batch), took in zip(cells, median, strict=True) if name == "faiss flat"}
    return [
        {"search": name, "batch": batch, "median_ms": round(took, 2), "of_faiss": round(took / theirs[batch], 3)}
        for (name, batch), took in zip(cells, median, strict=True)
    ]


def enlarged(bundle: Bundle, items: int, rng: np.random.Generator) -> Bundle:
    """The bundle with random items more, which nobody has ever chosen."""
    more = items - len(bundle.vectors)
    vectors = ItemVectors(np.concatenate((bundle.vectors.rows, unit_vectors(rng, more, bundle.vectors.width))))
    popularity = np.concatenate((bundle.popularity, np.zeros(more, np.int64)))
    transitions = np.full(items, np.nan, np.float32)
    old = bundle.catalogue
    names = (*old.ids, *(f"more-{number}" for number in range(more)))
    catalogue = Catalogue(names, (*old.titles, *[""] * more), (*old.categories, *[()] * more))
    tables = SelectorTables.build(popularity, vectors, transitions)
    return replace(bundle, vectors=vectors, popularity=popularity, catalogue=catalogue, tables=tables)


async def share(bundle: Bundle, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Where the time of a request goes, by depth: medians over requests that come one by one."""
    cloud, found = load_profile("cloud"), []
    async with Pipeline(bundle, open_engine(bundle)) as pipeline:
        for depth in bundle.depths:
            answers = []
            for _ in range(REQUESTS):
                history = rng.integers(0, bundle.manifest.items, 50)
                answers.append(await pipeline.recommend(IndexedQuery(history, BEST, cloud, depth=depth)))
            engine_ms = float(np.median([answer.timing.engine_us for answer in answers])) / 1e3
            retrieval_ms = float(np.median([answer.timing.retrieval_us for answer in answers])) / 1e3
            total_ms = float(np.median([answer.timing.total_us for answer in answers])) / 1e3
            found.append(
                {
                    "items": len(bundle.vectors),
                    "depth": depth,
                    "engine_ms": round(engine_ms, 3),
                    "retrieval_ms": round(retrieval_ms, 3),
                    "total_ms": round(total_ms, 3),
                    "retrieval_share": round(retrieval_ms / total_ms, 3),
                }
            )
    return found


def measure(options: Namespace) -> Iterator[Run]:
    """Searches alone, then as a part of requests."""
    rng = np.random.default_rng(SEED)
    found = searches(unit_vectors(rng, options.items), rng)
    agreement = same_items(found, unit_vectors(rng, 32))
    table, shares = rows(found, rng, options.rounds), []
    with Bundle.open(options.bundle) as bundle:
        for items in CATALOGUES:
            shares += asyncio.run(share(enlarged(bundle, items, rng), rng))
        config = {"items": options.items, "width": WIDTH, "best": BEST, "removed": REMOVED, "rounds": options.rounds}
        config["bundle"] = bundle.manifest.name
    yield Run(config, {"rows": table, "same_items_as_faiss": round(agreement, 5), "share_of_a_request": shares}, SEED)


def render(run: StoredRun) -> str:
    """Searches beside faiss, and their part of a request."""
    result, config = run["result"], run["config"]
    return paragraphs(
        f"## The best {config['best']} of {config['items']:,} items",
        f"Exact, width {config['width']}, one thread; {result['same_items_as_faiss']:.2%} of the items are those"
        " that faiss finds.",
        table_of(result["rows"], "search={search} | batch={batch} | ms={median_ms:.1f} | times faiss={of_faiss:.2f}"),
        "What part of a request of 50 items it is, by the size of the catalogue:",
        table_of(
            result["share_of_a_request"],
            "items={items:,} | depth={depth} | engine ms={engine_ms:.2f} | retrieval ms={retrieval_ms:.2f}"
            " | retrieval's part of the request={retrieval_share:.0%}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "10 min, faiss",
    {"bundle": Path, "--items": 1_000_000, "--rounds": 20},
    measure,
    of_runs(render, "retrieval"),
)
