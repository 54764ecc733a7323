"""One step of the benchmark `reviews` in a process of its own, whose peak memory is measured: prints JSON.

python -m fathom.benchmarks.systems.reviews_side prepare REVIEWS DATASET
python -m fathom.benchmarks.systems.reviews_side train DATASET STEPS
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fathom.training.batches import epoch_batches, make_batch
from fathom.training.choosing import choose, statistics
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.sources import default_options
from fathom.training.train import Trainer, TrainingStage, keep_freed_memory, pick_device

SOURCE = "amazon-reviews-2023"
#: Steps before those that count.
FIRST = 3


def prepared(reviews: Path, out: Path) -> dict[str, Any]:
    """What `fathom data prepare amazon-reviews-2023` does, and how long it takes."""
    started = time.perf_counter()
    dataset = prepare(SOURCE, out, options=replace(default_options(SOURCE), path=reviews))
    return {"seconds": round(time.perf_counter() - started, 2), "meta": dataset.meta}


def trained(path: Path, steps: int) -> dict[str, Any]:
    """So many steps of each stage, by the settings that the data chooses: seconds of a step, and steps of an epoch."""
    started = time.perf_counter()
    dataset = Dataset.load(path)
    config, device = choose(statistics(dataset)).config, pick_device("auto")
    keep_freed_memory()
    trainer = Trainer(config, dataset, device, None, path.with_name("state"), lambda _: None)
    opened_s, rows = time.perf_counter() - started, []
    for stage in trainer.stages:
        rows.append(_steps(trainer, stage, steps))
    return {"device": device.type, "opened_s": round(opened_s, 2), "stages": rows}


def _steps(trainer: Trainer, stage: TrainingStage, steps: int) -> dict[str, Any]:
    settings, train, rng = trainer.settings, trainer.split.train, np.random.default_rng(0)
    started = time.perf_counter()
    batches = epoch_batches(train, window=settings.window, tokens=settings.batch_tokens, rng=rng)
    cut_s, optimizer = time.perf_counter() - started, trainer.optimizer(stage)
    took = []
    for rows in batches[: FIRST + steps]:
        begun = time.perf_counter()
        batch = make_batch(train, rows, settings.targets_ahead).to(trainer.device)
        trainer.step(stage, optimizer, batch, rng, stage.layer_drop)
        took.append(time.perf_counter() - begun)
    counted = took[FIRST:] or took
    step_s = sum(counted) / len(counted)
    hours = (cut_s + step_s * len(batches)) / 3600
    return {
        "stage": stage.name,
        "steps_measured": len(counted),
        "step_s": round(step_s, 4),
        "steps_an_epoch": len(batches),
        "estimated_hours_an_epoch": round(hours, 4),
    }


def peak_mb() -> float:
    """The most resident memory that this process has had, from its start."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    step, first, second = sys.argv[1:]
    found = prepared(Path(first), Path(second)) if step == "prepare" else trained(Path(first), int(second))
    print(json.dumps(found | {"peak_mb": peak_mb()}))
