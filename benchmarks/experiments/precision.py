"""What fewer bits give and cost at every depth: size, memory, time of a request, quality.

Exports the checkpoint in every precision, int4+lora from the one that was healed from it (``--healed``), and measures
on one thread: engine files on disk; the most resident memory of a process that opens the engines and runs them, alone
and with all depths; milliseconds of one request with 50 items and with 200, all engines in a new random order in every
round; NDCG@10 on the test items with its interval, and the share of it that is lost, paired over users.
"""

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.experiments import engine_memory
from fathom.benchmarks.interleaved import interleaved
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.adapted import ADAPTED
from fathom.exporter.engines.precision import Precision
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
HISTORIES = (50, 200)
WARM_UP_ROUNDS = 10
SEED = 0
STORED = ("precision", "precision-wide")


def memory_mb(bundle: Path, depths: tuple[int, ...]) -> tuple[float, float]:
    """Peak memory of a process before it opens the engines of these depths, and after it has run them."""
    command = [sys.executable, "-m", engine_memory.__name__, str(bundle), *map(str, depths)]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return round(float(before), 1), round(float(after), 1)


def times_ms(engines: Mapping[Precision, Engine], items: int, repetitions: int) -> dict[tuple[str, int, int], float]:
    """(precision, depth, history) -> median milliseconds of one request."""
    rng = np.random.default_rng(SEED)
    histories = {length: rng.integers(1, items + 1, (1, length)) for length in HISTORIES}
    calls = {
        (name, depth, length): partial(engine.run, history, None, depth)
        for name, engine in engines.items()
        for depth in engine.depths
        for length, history in histories.items()
    }
    took = interleaved(calls, repetitions, warm_up=WARM_UP_ROUNDS)
    return {key: round(seconds * 1e3, 3) for key, seconds in took.items()}


def measure(checkpoint: Checkpoint, healed: Checkpoint | None, dataset: Dataset, repetitions: int) -> dict[str, Any]:
    """One row per precision and depth."""
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[Precision, Path] = {name: Path(folder) / name for name in PRECISIONS}
        for name, path in paths.items():
            export(checkpoint, dataset, path, name="precision", precision=name, max_loss=1.0)
        if healed is not None:
            paths[ADAPTED] = Path(folder) / ADAPTED
            arguments: dict[str, Any] = {"precision": ADAPTED, "reference": checkpoint, "max_loss": 1.0}
            export(healed, dataset, paths[ADAPTED], name="precision", **arguments)
        bundles = {name: Bundle.open(path) for name, path in paths.items()}
        engines = {name: open_engine(bundle) for name, bundle in bundles.items()}
        took = times_ms(engines, len(dataset.item_ids), repetitions)
        rows = []
        for name, bundle in bundles.items():
            for depth, info in sorted(bundle.manifest.depths.items()):
                before, peak = memory_mb(paths[name], (depth,))
                rows.append(
                    {
                        "precision": name,
                        "depth": depth,
                        "engines_kb": round(sum(bundle.manifest.files[each].bytes for each in info.segments) / 1e3),
                        "process_mb": before,
                        "peak_mb": peak,
                        **{f"history_{length}_ms": took[name, depth, length] for length in HISTORIES},
                        "ndcg@10": info.quality["ndcg@10"].model_dump(),
                        "loss": None if info.loss is None else info.loss.model_dump(),
                        "max_abs_error": info.parity.max_abs_error,
                        "top10_agreement": info.parity.top10_agreement,
                    }
                )
        together = {name: memory_mb(path, bundles[name].depths)[1] for name, path in paths.items()}
    return {"rows": rows, "all_depths_peak_mb": together}


def _section(run: StoredRun) -> str:
    config, rows, together = run["config"], run["result"]["rows"], run["result"]["all_depths_peak_mb"]
    alone = {row["precision"]: row["peak_mb"] for row in rows if row["depth"] == 16}
    all_depths = ", ".join(f"{name} {peak:.0f} MB ({peak / alone[name]:.2f} x)" for name, peak in together.items())
    model = config["model"]
    return paragraphs(
        "## Precision" if model["width"] == 64 else f"### At width {model['width']}",
        f"{config['data']}, {model['block']} blocks, width {model['width']}, one thread. Peak: of a process"
        f" that opens the engines of this depth and runs them; before it opens any it holds"
        f" {rows[0]['process_mb']:.0f} MB. Times: inside the engine, one request. Lost: the share"
        " of NDCG@10 on the test items, against fp32, paired over users.",
        table_of(
            rows,
            "precision={precision} | depth={depth} | engines KB={engines_kb:,} | peak MB={peak_mb:.0f}"
            " | history 50, ms={history_50_ms:.2f} | history 200, ms={history_200_ms:.2f}"
            " | NDCG@10={ndcg@10:interval} | lost, %={loss:percent}",
        ),
        f"Peak with all depths together, and times that of depth 16 alone: {all_depths}.",
    )


def _measure(options: Namespace) -> list[Run]:
    checkpoint, dataset = Checkpoint.load(options.checkpoint), Dataset.load(options.data)
    healed = None if options.healed is None else Checkpoint.load(options.healed)
    config = {
        "data": dataset.meta["name"],
        "model": checkpoint.model.config.model_dump(mode="json", exclude={"paths"}),
        "threads": 1,
        "repetitions": options.repetitions,
    }
    return [Run(config, measure(checkpoint, healed, dataset, options.repetitions), SEED, options.name)]


BENCHMARK = Benchmark(
    __doc__,
    "10 min, a checkpoint and its data",
    {"checkpoint": Path, "--data": Path, "--healed": None, "--repetitions": 100, "--name": STORED[0]},
    _measure,
    of_runs(_section, *STORED),
)
