"""The shapes of two published HSTU inference benchmarks, on a CPU: whole histories, and with a prefix that is cached.

MLPerf Inference DLRMv3 and the HSTU benchmark of NVIDIA's recsys-examples say how many layers, heads and components
their networks have, and how long their sequences are. Untrained networks of these shapes, and the same at a width of
256, are exported and run by onnxruntime on one thread, in fp32: whole histories, with as many new items as these
benchmarks add to a cached prefix, and with one; then the candidates are scored. Ways take turns until --seconds have
passed, at least three times each. The peak is that of a large fp32 matrix product, measured in the same turns. The
engines are compared with torch at a short length, the incremental ones with whole histories at each length.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from fathom.benchmarks.experiments.efficiency import SIDE, flops, products
from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.untrained import untrained
from fathom.errors import ConfigError, ParityError
from fathom.exporter.engines.engine_set import segment_specs
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.parity import MAX_ABS_ERROR
from fathom.exporter.engines.segments import (
    CONTEXT_FILE,
    export_extension,
    export_segments,
    extension_file,
    step_file,
)
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.engines.incremental import (
    MOST_STEPPED,
    CachedHistory,
    CachedState,
    IncrementalFiles,
    IncrementalRunner,
)
from fathom.runtime.engines.interface import run_in_parts
from fathom.runtime.engines.onnx import MOST_POSITIONS
from fathom.runtime.engines.segment import Segment
from fathom.runtime.item_vectors import ItemVectors

SEED = 0
#: Of the catalogue: those of NVIDIA's benchmark.
ITEMS = 10_000
#: Positions of a batch at most.
MOST_IN_BATCH = 16_384
LEAST_CALLS, MOST_CALLS = 3, 200
#: The length at which engines are compared with torch.
COMPARED = 128
#: Matrices of (heads, history, history) floats that a layer and its incremental form hold, as was measured.
HELD = 9

WHOLE = "whole history"


class Shape(NamedTuple):
    """A published benchmark: its network, and what it is asked.

    ``width``: as published; ``scaled``: what is run beside it. ``new``: items added to a cached prefix.
    """

    title: str
    layers: int
    heads: int
    width: int
    scaled: int
    histories: tuple[int, ...]
    new: int
    candidates: int
    batches: tuple[int, ...]


SHAPES = {
    "nvidia-hstu": Shape("NVIDIA recsys-examples", 8, 4, 1_024, 256, (256, 512, 1_024, 2_048, 4_096), 128, 256, (1, 8)),
    # The mean length over the ten timestamps that are asked, by the reference's generator; a user who acts adds 100.
    "dlrm-v3": Shape("MLPerf DLRMv3", 5, 4, 512, 256, (6_715,), 100, 2_048, (1,)),
}


class Stack:
    """The layers of a shape at a width, exported and opened; one thread."""

    def __init__(self, shape: Shape, width: int) -> None:
        longest = max(shape.histories)
        sizes = {"block": "hstu", "layers": shape.layers, "width": width, "heads": shape.heads}
        paths = {shape.layers: tuple(range(shape.layers))}
        checkpoint, _ = untrained(items=ITEMS, **sizes, max_history=longest, span=longest, paths=paths)
        self.depth = shape.layers
        self._model = checkpoint.model
        self._engines = export_segments(self._model).converted(with_optional_exit)
        self.vectors = self._engines.vectors
        files = export_extension(self._model)
        segments, steps = {self.depth: extension_file(self.depth)}, {self.depth: step_file(self.depth)}
        form = IncrementalFiles(longest, shape.heads, width, CONTEXT_FILE, segments, steps)

        def load(name: str, /, *, recurring: bool = False) -> Segment:
            return Segment(files[name], name, threads=1, recurring=recurring)

        self._incremental = IncrementalRunner(form, self.vectors, load, [self.depth])
        self.torch_error = self._compared_with_torch()

    def whole(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """User vectors (batch, width) of input ids (batch, history), as many at once as a server computes."""
        at_once = max(1, MOST_POSITIONS // ids.shape[1])
        return run_in_parts(lambda some, _, depth: self._engines.run(some, None)[depth], ids, None, self.depth, at_once)

    def cached(self, ids: NDArray[np.int64]) -> list[CachedState]:
        """What is kept of each history."""
        return [self._incremental.run([CachedHistory(row, None, None)], [self.depth])[1][0] for row in ids]

    def extended(self, ids: NDArray[np.int64], states: list[CachedState]) -> NDArray[np.float32]:
        """User vectors of histories of which the first items are cached."""
        histories = [CachedHistory(row, None, state) for row, state in zip(ids, states, strict=True)]
        return self._incremental.run(histories, [self.depth] * len(histories))[0]

    def whole_flops(self, length: int) -> int:
        """Of the matrix products of one history; a masked product counts, as it is computed."""
        config = self._model.config
        return sum(flops(config, spec, length) for spec in segment_specs(config.paths))

    def extended_flops(self, length: int, new: int) -> int:
        """The same with so many new items; a step computes its last layer for all of them."""
        width = self._model.config.width
        layer, attention = 5 * width * width, 2 * length * width
        asking = new if new <= MOST_STEPPED else 1
        last = new * 4 * width * width + asking * (width * width + attention)
        return 2 * ((self.depth - 1) * new * (layer + attention) + last)

    def _compared_with_torch(self) -> float:
        ids = _histories(1, min(COMPARED, self._model.config.max_history))
        with torch.no_grad():
            expected = self._model.user_vectors(torch.from_numpy(ids), depth=self.depth).numpy()
        error = float(np.abs(expected - self.whole(ids)).max())
        if not error <= MAX_ABS_ERROR:
            raise ParityError(f"the engine is off by {error:.2g} from torch, more than {MAX_ABS_ERROR:g}")
        return error


def _histories(batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).integers(1, ITEMS + 1, (batch, length))


def check_memory(shape: Shape) -> None:
    """Raises ConfigError where a layer of the longest history would not fit into the memory that is free."""
    needed = HELD * shape.heads * max(shape.histories) ** 2 * 4
    free = psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"{shape.title}: a history of {max(shape.histories):,} needs about {needed / 1e9:.0f} GB of memory, and"
            f" {free / 1e9:.0f} GB are free; leave it out with --shapes"
        )


def measure_cell(
    stack: Stack, shape: Shape, length: int, batch: int, seconds: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """A row for each way to answer a batch of histories, and GFLOP/s of the peak in the same turns."""
    ids = _histories(batch, length)
    candidates = np.random.default_rng(SEED).integers(0, ITEMS, shape.candidates)
    ways: dict[str, Callable[[], NDArray[np.float32]]] = {WHOLE: partial(stack.whole, ids)}
    floating, kept_mb, error = {WHOLE: stack.whole_flops(length)}, 0.0, 0.0
    for new in (shape.new, 1):
        states = stack.cached(ids[:, :-new])
        name = f"{new} new"
        ways[name] = partial(stack.extended, ids, states)
        floating[name] = stack.extended_flops(length, new)
        kept_mb = states[0].nbytes / 1e6
    reference = ways[WHOLE]()
    for name, way in ways.items():
        error = max(error, float(np.abs(way() - reference).max()))
        if not error <= MAX_ABS_ERROR:
            raise ParityError(f"{name}: off by {error:.2g} from the whole history, more than {MAX_ABS_ERROR:g}")
    took: dict[str, list[float]] = {name: [] for name in ways}
    peaks = products()
    peak: list[float] = []
    begin = time.perf_counter()
    while len(took[WHOLE]) < LEAST_CALLS or (time.perf_counter() - begin < seconds and len(took[WHOLE]) < MOST_CALLS):
        for name, way in ways.items():
            took[name].append(_seconds(partial(scores, stack.vectors, candidates, way)))
        peak.append(max(2e-9 * SIDE**3 / _seconds(product) for product in peaks.values()))
    rows = [
        {
            "history": length,
            "batch": batch,
            "way": name,
            **figures(each, batch, length, batch * floating[name]),
            "cached_mb": None if name == WHOLE else round(kept_mb, 2),
            "max_abs_error": float(f"{error:.2g}"),
        }
        for name, each in took.items()
    ]
    for row in rows:
        row["times_less"] = round(median(took[WHOLE]) / median(took[row["way"]]), 2)
    return rows, peak


def scores(
    vectors: ItemVectors, candidates: NDArray[np.int64], way: Callable[[], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Of the candidates for the user vectors that a way gives, (candidates, batch)."""
    found: NDArray[np.float32] = vectors.take(candidates) @ way().T
    return found


def figures(took_s: list[float], batch: int, length: int, flop: int) -> dict[str, Any]:
    """``took_s``: seconds of each call; ``flop``: of one. The p99 of few calls is the longest."""
    p50 = median(took_s)
    return {
        "calls": len(took_s),
        "p50_ms": round(p50 * 1e3, 3),
        "p99_ms": round(float(np.quantile(took_s, 0.99, method="higher")) * 1e3, 3),
        "sequences_per_s": float(f"{batch / p50:.4g}"),
        "tokens_per_s": float(f"{batch * length / p50:.4g}"),
        "tflops": float(f"{flop / p50 / 1e12:.3g}"),
    }


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(options: Namespace) -> Iterator[Run]:
    """Every shape at its own width and at the scaled one."""
    unknown = [name for name in options.shapes if name not in SHAPES]
    if unknown:
        raise ConfigError(f"no shape is called {unknown[0]}; there are {', '.join(SHAPES)}")
    limit_blas_threads(1)
    rows: list[dict[str, Any]] = []
    peaks: list[float] = []
    for name in options.shapes:
        shape = SHAPES[name]
        check_memory(shape)
        for width in (shape.width, shape.scaled):
            stack = Stack(shape, width)
            # What takes seconds at the width that is published is not worth a batch: it runs one by one.
            batches = shape.batches[:1] if width == shape.width else shape.batches
            for length in shape.histories:
                for batch in (each for each in batches if each * length <= MOST_IN_BATCH):
                    found, peak = measure_cell(stack, shape, length, batch, options.seconds)
                    torch_error = float(f"{stack.torch_error:.2g}")
                    rows += [{"shape": name, "width": width, "torch_error": torch_error, **row} for row in found]
                    peaks += peak
    peak_tflops = median(peaks) / 1e3
    for row in rows:
        row["share_of_peak"] = float(f"{row['tflops'] / peak_tflops:.3g}")
    config = {"threads": 1, "precision": "fp32", "items": ITEMS, "seconds": options.seconds}
    yield Run(config, {"peak_tflops": float(f"{peak_tflops:.4g}"), "rows": rows}, SEED)


MLPERF = "https://github.com/mlcommons/inference"
NVIDIA = "https://github.com/NVIDIA/recsys-examples"
SOURCES = (
    f"Sources: MLPerf's [README]({MLPERF}/tree/master/recommendation/dlrm_v3),"
    f" [network]({MLPERF}/blob/master/recommendation/dlrm_v3/configs.py),"
    f" [generator of requests]({MLPERF}/blob/master/recommendation/dlrm_v3/streaming_synthetic_data.py) and"
    f" [limits]({MLPERF}/blob/master/loadgen/mlperf.conf), and"
    " [MLCommons on DLRMv3](https://mlcommons.org/2026/02/dlrmv3-inference-meta/); NVIDIA's"
    f" [README]({NVIDIA}/blob/main/examples/hstu/inference/benchmark/README.md) and"
    f" [benchmark]({NVIDIA}/blob/main/examples/hstu/inference/benchmark/paged_hstu_with_kvcache_benchmark.py);"
    " HSTU: [arXiv 2402.17152](https://arxiv.org/abs/2402.17152)."
)
#: What they ask and what is asked here, line by line.
COMPARISON = (
    ("layers", "5", "8", "the same"),
    ("width; heads", "512; 4 of 128", "1,024; 4 of 256 (of 128 on B200)", "the same, and a width of 256: 4 of 64"),
    (
        "history",
        "6,400 to 7,030 items in the mean, as its generator makes them; at most 16,384 with candidates",
        "256 to 4,096",
        "6,715; 256 to 4,096, doubling",
    ),
    (
        "candidates",
        "2,048, each through all layers behind the history",
        "256, each through all layers behind the history",
        "as many, but scored by an inner product with the user vector: Fathom retrieves, and does not rank",
    ),
    ("batch", "10 by default", "1, 2, 4, 8", "1; at width 256 of NVIDIA's shape 8 too, up to 2,048 items"),
    (
        "cached prefix",
        "none",
        "all but 128 to 4,096 items, in pages on the GPU",
        "all but 100 (DLRMv3) or 128 (NVIDIA), and all but one, in memory",
    ),
    ("last layer", "all positions", "all positions", "the newest position, which alone is read"),
    (
        "masked products",
        "left out by the kernels, block by block",
        "left out by the kernels, block by block",
        "computed, and counted as FLOP",
    ),
    ("arithmetic", "bf16, on GPUs", "bf16, on one GPU", "fp32, one thread of a CPU"),
    (
        "catalogue",
        "a billion items, 1 TB of embeddings, looked up in the time",
        "10,000 items, looked up in the end-to-end time only",
        "10,000 items, looked up in the time",
    ),
    (
        "what is told",
        "queries/s with 99 % within 80 ms (Server), samples/s (Offline); accuracy",
        "ms of the HSTU block; with 3,968 of 4,096 items cached 3 to 20 times less without candidates, 3 to 8 with"
        " (L20); end to end 1.3 to 2.6",
        "the table below; no accuracy, as nothing was learned",
    ),
)


def render(run: StoredRun) -> str:
    """What is the same and what is not, then a table for each shape."""
    config, result = run["config"], run["result"]
    parts = []
    for name in dict.fromkeys(row["shape"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["shape"] == name]
        parts += [
            f"{SHAPES[name].title}, {SHAPES[name].layers} layers:",
            table_of(
                rows,
                "width={width:,} | history={history:,} | batch={batch} | way={way} | calls={calls}"
                " | p50 ms={p50_ms:,.1f} | p99 ms={p99_ms:,.1f} | sequences/s={sequences_per_s:,.1f}"
                " | tokens/s={tokens_per_s:,.0f} | TFLOP/s={tflops:.3f}"
                " | of the peak={share_of_peak:.0%} | times less={times_less:.1f}"
                " | cached MB={cached_mb:.1f}",
            ),
        ]
    worst, torch_worst = (max(row[key] for row in result["rows"]) for key in ("max_abs_error", "torch_error"))
    return paragraphs(
        "## The shapes of published HSTU benchmarks, on a CPU",
        "These are not results of MLPerf or of NVIDIA, and cannot be compared with theirs: only the shapes are the"
        " same.",
        table(["", "MLPerf DLRMv3", "NVIDIA's HSTU benchmark", "here"], COMPARISON),
        SOURCES,
        f"One thread, {config['precision']}; the peak, a large matrix product on the same core in the same turns, is"
        f" {result['peak_tflops']:.3f} TFLOP/s. Tokens are items of the histories that are answered, cached ones too;"
        " the p99 of up to 100 calls is the longest. Whole histories of a batch run together up to"
        f" {MOST_POSITIONS:,} items in all, as in a server. User vectors are off by at most {torch_worst:.1e} from"
        f" torch, and those of cached prefixes by {worst:.1e} from whole histories.",
        *parts,
    )


BENCHMARK = Benchmark(
    __doc__,
    "6 min, no bundle; 7 GB of free memory",
    {"--shapes": tuple(SHAPES), "--seconds": 4.0},
    measure,
    of_runs(render, "literature_shapes"),
)
