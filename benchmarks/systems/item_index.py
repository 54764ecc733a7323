"""Kinds of search in a large catalogue: latency, memory, time to build, recall and quality, and requests/s with each.

The catalogue of a bundle is filled up with items drawn from the density of its own, and the bundle written anew; its
engines, histories and test items stay. `fathom bundle index` makes a bundle with each kind of index of it and measures
recall@10, which must be .99, and the loss of NDCG@10 on test users. Then all kinds are searched in turn, one user at a
time and 32, without seen items; and their pipelines answer test users, one at a time and 32 in flight, at the
shallowest and the deepest depth. One thread, but for building. What is done stays in the folder --work, and is not done
again. Needs the extra faiss. 10,000,000 items need some 15 GB of memory and of disk, and a graph takes hours to build:
leave it out with --kinds.
"""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.interleaved import interleaved
from fathom.benchmarks.load import closed_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems.denser_catalogue import write_denser
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.exporter.bundle.index import IndexLimits, index_bundle
from fathom.files import read_json, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.manifest import INDEX_FILE
from fathom.runtime.manifest_file import read_manifest
from fathom.runtime.padding import left_padded
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.training.dataset import Dataset
from fathom.training.splits import Cases, split

SEED = 0
KINDS = ("pq", "ivf", "hnsw")
FLAT = "flat"
BATCHES = (1, 32)
K = 10
IN_FLIGHT, ALONE = 32, 40
#: Of what is lost it tells, whatever that is.
LIMITS = IndexLimits(max_loss=1.0)
_SCHEMA_VERSION = 1


def made(options: Namespace) -> dict[str, dict[str, Any]]:
    """Name of a search -> what building it took and found; the bundles lie in the folder of the work."""
    work, found = options.work, {}
    source = work / f"items-{options.items}"
    if not (source / "manifest.json").exists():
        with Bundle.open(options.bundle) as bundle:
            if options.items <= len(bundle.vectors):
                raise ConfigError(f"--items {options.items}: the bundle has {len(bundle.vectors):,} already")
            work.mkdir(parents=True, exist_ok=True)
            write_denser(bundle, source, options.items, SEED)
    dataset = Dataset.load(options.data)
    for kind in options.kinds:
        note = work / f"{source.name}-{kind}.json"
        if not note.exists():
            built = index_bundle(
                source,
                dataset,
                work / f"{source.name}-{kind}",
                kind,
                limits=LIMITS,
                threads=options.threads,
                judged=options.judged,
            )
            write_json(note, {"schema_version": _SCHEMA_VERSION, "built_s": round(built.built_s, 1)})
        found[kind] = read_json(note, kind="note of a built index", schema_version=_SCHEMA_VERSION)
    return found


def opened(options: Namespace) -> dict[str, Bundle]:
    """The bundles by the name of their search; they share the items, which are the same."""
    flat = Bundle.open(options.work / f"items-{options.items}")
    paths = {kind: flat.path.with_name(f"{flat.path.name}-{kind}") for kind in options.kinds}
    return {FLAT: flat} | {kind: replace(flat, path=path, manifest=read_manifest(path)) for kind, path in paths.items()}


def search_ms(bundles: dict[str, Bundle], cases: Cases, rounds: int) -> dict[tuple[str, int], float]:
    """Milliseconds of a search for a batch: the best ten of test users at the deepest depth, without what they have."""
    flat, rows = bundles[FLAT], range(max(BATCHES))
    longest = flat.manifest.model.max_history
    histories = [np.asarray(cases.histories[row], np.int64) for row in rows]
    items = left_padded([history[-longest:] + 1 for history in histories], longest)
    with open_engine(flat) as engine:
        users = engine.run(items, None, flat.depths[-1])
    keeps = [ItemFilter(exclude=history) for history in histories]
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for name, bundle in bundles.items():
        retriever = open_retriever(bundle)
        for batch in BATCHES:
            # Alone, another user every time.
            turns = iter(range(1_000_000))

            def search(
                search: Callable[..., object] = retriever.search, batch: int = batch, turns: Iterator[int] = turns
            ) -> object:
                low = 0 if batch > 1 else next(turns) % len(keeps)
                return search(users[low : low + batch], [K] * batch, keeps[low : low + batch])

            calls[name, batch] = search
    return {cell: seconds * 1e3 for cell, seconds in interleaved(calls, rounds).items()}


async def served(bundles: dict[str, Bundle], cases: Cases, options: Namespace) -> list[dict[str, Any]]:
    """What requests take with each search: one by one, and how many are answered with 32 in flight."""
    cloud, flat = load_profile("cloud"), bundles[FLAT]
    histories = [np.asarray(cases.histories[row], np.int64) for row in range(min(len(cases), 512))]
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        pipelines = {
            name: await stack.enter_async_context(Pipeline(bundle, open_engine(bundle)))
            for name, bundle in bundles.items()
        }
        for depth in sorted({flat.depths[0], flat.depths[-1]}):
            asked = [IndexedQuery(history, K, cloud, depth=depth) for history in histories]
            figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in pipelines}
            order = np.random.default_rng(SEED)
            for turn in range(-1, options.turns):
                for name in order.permutation(list(pipelines)).tolist():
                    figure = await _turn(pipelines[name], asked, options.requests)
                    if turn >= 0:
                        figures[name].append(figure)
            for name, each in figures.items():
                retrieval, total, share, rate = np.median(each, axis=0).tolist()
                rows.append(
                    {
                        "search": name,
                        "depth": depth,
                        "retrieval_ms": round(retrieval, 3),
                        "total_ms": round(total, 3),
                        "retrieval_share": round(share, 3),
                        "requests_per_s": round(rate, 1),
                    }
                )
    return rows


async def _turn(pipeline: Pipeline, asked: Sequence[IndexedQuery], requests: int) -> tuple[float, ...]:
    """Milliseconds of retrieval and of a request alone, retrieval's share, and requests/s with 32 in flight."""

    async def send(number: int) -> object:
        return await pipeline.recommend(asked[number % len(asked)])

    timings = [(await pipeline.recommend(query)).timing for query in asked[:ALONE]]
    retrieval = float(np.median([each.retrieval_us for each in timings])) / 1e3
    total = float(np.median([each.total_us for each in timings])) / 1e3
    return retrieval, total, retrieval / total, await closed_loop(send, IN_FLIGHT, requests)


def measure(options: Namespace) -> Iterator[Run]:
    """Builds what is not there yet, then measures all kinds in turn."""
    built = made(options)
    dataset = Dataset.load(options.data)
    bundles = opened(options)
    flat = bundles[FLAT]
    cases = split(dataset, flat.manifest.source.split or "").test
    cases = cases.select(np.random.default_rng(SEED).permutation(len(cases)))
    took = search_ms(bundles, cases, options.rounds)
    rows = [_row(name, bundle, took, built.get(name)) for name, bundle in bundles.items()]
    requests = asyncio.run(served(bundles, cases, options))
    config = {
        "bundle": flat.manifest.name,
        "items": options.items,
        "width": flat.manifest.model.width,
        "threads": options.threads,
        "judged": options.judged,
    }
    yield Run(config, {"rows": rows, "requests": requests}, SEED, f"item_index-{options.items}")


def _row(name: str, bundle: Bundle, took: dict[tuple[str, int], float], built: dict[str, Any] | None) -> dict[str, Any]:
    info = bundle.manifest.retrieval
    row: dict[str, Any] = {
        "search": name,
        "one_ms": round(took[name, 1], 3),
        "batch_ms": round(took[name, 32], 2),
        "vectors_mb": round(bundle.vectors.rows.nbytes / 2**20, 1),
        "index_mb": 0.0,
    }
    if info is None or built is None:
        return row
    worst = min(info.recall.values(), key=lambda each: each.value)
    loss = max(info.loss.values(), key=lambda each: each.value)
    return row | {
        "index_mb": round(bundle.manifest.files[INDEX_FILE].bytes / 2**20, 1),
        "built_s": built["built_s"],
        "recall": worst.model_dump(),
        "loss": loss.model_dump(),
        "lists": info.lists,
        "levels": [level.model_dump() for level in info.levels],
    }


def render(run: StoredRun) -> str:
    """Kinds of search, and requests with each."""
    config, result = run["config"], run["result"]
    rows = [{"built_s": None, "recall": None, "loss": None} | row for row in result["rows"]]
    plain = {row["depth"]: row["requests_per_s"] for row in result["requests"] if row["search"] == FLAT}
    requests = [row | {"times": row["requests_per_s"] / plain[row["depth"]]} for row in result["requests"]]
    return paragraphs(
        f"## Kinds of search among {config['items']:,} items",
        f"The items of {config['bundle']} and others drawn from their density, width {config['width']}; the best {K}"
        f" without seen items, one thread ({config['threads']} to build). Recall@10 and the loss of NDCG@10, in"
        f" percent, are those of the worst depth, on {config['judged']:,} test users, paired with the flat search.",
        table_of(
            rows,
            "search={search} | one user, ms={one_ms:.2f} | 32 users, ms={batch_ms:.1f} | vectors, MB={vectors_mb:.0f}"
            " | index, MB={index_mb:.0f} | to build, s={built_s:.0f} | recall@10, %={recall:percent}"
            " | loss, %={loss:percent}",
        ),
        f"Requests through the pipeline: one at a time, and with {IN_FLIGHT} in flight.",
        table_of(
            requests,
            "search={search} | depth={depth} | retrieval ms={retrieval_ms:.2f} | request ms={total_ms:.2f}"
            " | retrieval's part={retrieval_share:.0%} | requests/s={requests_per_s:.0f} | times flat={times:.2f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "10 min for a million items, a bundle and its data, faiss",
    {
        "bundle": Path,
        "--data": Path,
        "--work": Path("build/item_index"),
        "--items": 1_000_000,
        "--kinds": KINDS,
        "--threads": 2,
        "--judged": 2_500,
        "--rounds": 50,
        "--turns": 5,
        "--requests": 256,
    },
    measure,
    of_runs(render, "item_index-1000000", "item_index-10000000"),
)
