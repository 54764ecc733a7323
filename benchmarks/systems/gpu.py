"""Engines on a GPU beside the same engines on the processor of the same machine.

For every bundle, depths 4 and 16: milliseconds of one batch on the GPU, on one thread and on all cores, every round in
a new random order, and the largest difference between their user vectors. `captured` says whether the bundle's engines
became CUDA graphs (`fathom bundle convert --to cuda`). Then requests a second through the whole pipeline, without gRPC,
so many in flight, and the search for the best 100 of random catalogues. Needs the extra gpu.
"""

import asyncio
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fathom.benchmarks.interleaved import interleaved
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems.retrieval import unit_vectors
from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.settings import PipelineSettings

DEPTHS = (4, 16)
SHAPES = ((1, 50), (1, 200), (32, 50), (32, 200), (256, 50), (256, 200))
CATALOGUES = (12_000, 100_000, 1_000_000)
BATCHES = (1, 32, 256)
BEST = 100
IN_FLIGHT = 256
REQUESTS = 4_000
SEED = 0


def median_ms(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Of each, under its name with the unit; a GPU captures a shape in the second of two rounds that do not count."""
    taken = interleaved(calls, rounds, warm_up=2)
    return {f"{name}_ms": round(seconds * 1e3, 3) for name, seconds in taken.items()}


def engines(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """A row for every depth and shape."""
    rng, found = np.random.default_rng(SEED), []
    with (
        CudaEngine(bundle, depths=DEPTHS) as gpu,
        OnnxEngine(bundle, depths=DEPTHS, threads=1) as one,
        OnnxEngine(bundle, depths=DEPTHS, threads=os.cpu_count() or 1) as all_cores,
    ):
        for depth in DEPTHS:
            for batch, length in SHAPES:
                items = rng.integers(1, bundle.manifest.items + 1, (batch, length))
                opened: dict[str, Engine] = {"gpu": gpu, "cores": all_cores}
                if batch <= 32:
                    opened["thread"] = one
                calls = {name: partial(each.run, items, None, depth) for name, each in opened.items()}
                row: dict[str, Any] = {
                    "bundle": bundle.manifest.name,
                    "width": bundle.manifest.model.width,
                    "precision": bundle.manifest.precision,
                    "captured": gpu.captured,
                    "depth": depth,
                    "batch": batch,
                    "history": length,
                }
                row |= median_ms(calls, rounds)
                error = np.abs(gpu.run(items, None, depth) - all_cores.run(items, None, depth)).max()
                found.append(row | {"max_abs_error": float(f"{error:.2g}")})
    return found


async def throughput(bundle: Bundle, engine: CudaEngine | OnnxEngine, depth: int) -> float:
    """Requests a second at a depth, histories of 50."""
    cloud, rng = load_profile("cloud"), np.random.default_rng(SEED)
    settings = PipelineSettings(max_batch=256, max_batch_tokens=65_536, policy="deepest")
    async with Pipeline(bundle, engine, settings=settings) as pipeline:
        waiting = iter([IndexedQuery(rng.integers(0, bundle.manifest.items, 50), 10, cloud, depth=depth)] * REQUESTS)

        async def client() -> None:
            for query in waiting:
                await pipeline.recommend(query)

        begin = perf_counter()
        await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
        return REQUESTS / (perf_counter() - begin)


def searches(rounds: int) -> list[dict[str, Any]]:
    """A row for every catalogue and batch."""
    rng, table = np.random.default_rng(SEED), []
    for items in CATALOGUES:
        vectors = ItemVectors(unit_vectors(rng, items))
        cores = FlatRetriever(vectors, threads=os.cpu_count() or 1)
        one, gpu = FlatRetriever(vectors), FlatRetriever(vectors, device="cuda")
        for batch in BATCHES:
            filters = [ItemFilter(exclude=rng.integers(0, items, 50)) for _ in range(batch)]
            asked = unit_vectors(rng, batch), [BEST] * batch, filters
            opened = {"gpu": gpu, "cores": cores, "thread": one}
            taken = median_ms({name: partial(each.search, *asked) for name, each in opened.items()}, rounds)
            pairs = zip(gpu.search(*asked), one.search(*asked), strict=True)
            same = np.mean([np.array_equal(found[0], expected[0]) for found, expected in pairs])
            table.append({"items": items, "batch": batch} | taken | {"same_answers": round(float(same), 4)})
    return table


def measure(options: Namespace) -> Iterator[Run]:
    """Engines, pipelines, searches."""
    rows, rates = [], []
    for path in options.bundles:
        with Bundle.open(path) as bundle:
            rows += engines(bundle, options.rounds)
            for depth in DEPTHS:
                gpu, thread = CudaEngine(bundle, depths=DEPTHS), OnnxEngine(bundle, depths=DEPTHS, threads=1)
                row = {"bundle": bundle.manifest.name, "captured": gpu.captured, "depth": depth}
                for kind, engine in (("gpu", gpu), ("thread", thread)):
                    row[f"{kind}_per_s"] = round(asyncio.run(throughput(bundle, engine, depth)))
                rates.append(row)
    names = [path.name for path in options.bundles]
    config = {"bundles": names, "best": BEST, "in_flight": IN_FLIGHT, "rounds": options.rounds}
    yield Run(config, {"engines": rows, "pipeline": rates, "search": searches(options.rounds)}, SEED)


def render(run: StoredRun) -> str:
    """Engines, pipelines and searches, a table each."""
    result, config, cores = run["result"], run["config"], run["machine"]["cores"]
    rows = [
        {
            "thread_ms": None,
            **row,
            "kind": f"{row['width']}, {row['precision']}{'' if row['captured'] else ', no graphs'}",
        }
        for row in result["engines"]
    ]
    pipeline = [{**row, "graphs": "captured" if row["captured"] else ""} for row in result["pipeline"]]
    return paragraphs(
        "## On a GPU",
        f"{run['machine']['gpu']}, onnxruntime {run['versions']['onnxruntime-gpu']}; the processor is that of the"
        " same machine. Histories go to the GPU and user vectors come back within the time. Error: the largest of a"
        " user vector, against the processor with the same engines.",
        table_of(
            rows,
            "width, precision={kind} | depth={depth} | batch={batch} | history={history} | GPU ms={gpu_ms:.2f}"
            " | one thread ms={thread_ms:.2f}"
            f" | {cores} cores ms={{cores_ms:.1f}}"
            " | error={max_abs_error:.0e}",
        ),
        f"Requests a second through the pipeline, without gRPC, history 50, {config['in_flight']} in flight:",
        table_of(
            pipeline,
            "bundle={bundle} | graphs={graphs} | depth={depth} | GPU={gpu_per_s:,} | one thread={thread_per_s:,}",
        ),
        f"The best {config['best']} by exact search, width 64, without 50 items that each has seen:",
        table_of(
            result["search"],
            "items={items:,} | batch={batch} | GPU ms={gpu_ms:.2f} | one thread ms={thread_ms:.2f}"
            f" | {cores} cores ms={{cores_ms:.2f}}"
            " | same answers={same_answers:.0%}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "10 min, a GPU",
    {"bundles": (Path("build/ml-100k/bundle"),), "--rounds": 20},
    measure,
    of_runs(render, "gpu"),
)
