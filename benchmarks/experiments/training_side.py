"""One side of the training benchmark in a process of its own: prints what each stage of some steps gave, as JSON.

    python -m fathom.benchmarks.experiments.training_side SIDE PRESET DATASET STEPS

``straightforward`` takes windows as they come and pads each to the longest that is allowed, as the reference code of
SASRec does; it writes attention and softmax as the formulas read, with torch's own dropout and optimizer and the
system's allocator. ``same batches`` is that on Fathom's batches, which hold windows of similar length, and reaches
Fathom's losses. ``fathom`` is what ``fathom train`` does.
"""

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fathom.training import blocks, model, objectives
from fathom.training.batches import Batch, epoch_batches, make_batch
from fathom.training.dataset import Dataset
from fathom.training.presets import preset
from fathom.training.train import Trainer, TrainingStage, keep_freed_memory

SIDES = ("straightforward", "same batches", "fathom")
#: Steps after which Fathom's memory has settled.
MORE = 30

Rng = np.random.Generator
Row = dict[str, Any]


def plain_attention(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What ``silu_attention`` computes, as the formula reads."""
    gate, *qkv = F.silu(projected).chunk(4, dim=-1)
    heads = bias.shape[-3]
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in qkv)
    return gate, (F.silu(q @ k.mT + bias) @ v).transpose(1, 2).flatten(2)


def plain_partition(users: Tensor, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What ``partition`` computes, as the formula reads."""
    mass = (users @ vectors.T).exp() * weights[:, None]
    total = mass.sum(-1)
    with torch.no_grad():
        expected = mass @ vectors / total[..., None]
    return total.log(), expected


def padded(batch: Batch, length: int) -> Batch:
    """The same batch, padded on the left to this length."""
    more = length - batch.items.shape[1]
    times = None if batch.timestamps is None else F.pad(batch.timestamps, (more, 0))
    weights = None if batch.weights is None else F.pad(batch.weights, (0, 0, more, 0))
    items, ahead = F.pad(batch.items, (more, 0)), F.pad(batch.ahead, (0, 0, more, 0), value=-1)
    return Batch(items, ahead, times, batch.users, weights)


def events(batch: Batch) -> int:
    """How many positions are not padding."""
    return int((batch.items > 0).sum())


def make_batches(trainer: Trainer, side: str, count: int, rng: Rng) -> list[Batch]:
    """The first batches of an epoch, as this side cuts them."""
    settings, train = trainer.config.train, trainer.split.train
    cuts = epoch_batches(train, window=settings.window, tokens=settings.batch_tokens, rng=rng)
    if side == "straightforward":
        windows = rng.permutation(np.concatenate(cuts))
        cuts = np.array_split(windows, len(windows) * settings.window // settings.batch_tokens)
    batches = [make_batch(train, rows, settings.targets_ahead) for rows in cuts[:count]]
    return [padded(batch, settings.window) for batch in batches] if side == "straightforward" else batches


def measure_stage(trainer: Trainer, stage: TrainingStage, side: str, batches: list[Batch], steps: int, rng: Rng) -> Row:
    """Events per second, FLOP per event, and the mean loss of the first steps, whose weights the trainer keeps."""
    optimizer, timed = trainer.optimizer(stage), batches[:steps]
    if side != "fathom":
        for group in optimizer.param_groups:
            group["fused"] = False

    def train(batches: list[Batch]) -> list[float]:
        return [trainer.step(stage, optimizer, batch, rng, 0.0) for batch in batches]

    with FlopCounterMode(display=False) as counter:
        train(batches[:1])
    losses = train(timed)
    trained = copy.deepcopy(trainer.model.state_dict())
    # Memory that is kept is fetched from the kernel once, while the first batches of many shapes go by.
    train(batches[steps:] if side == "fathom" else [])
    started = time.perf_counter()
    train(timed)
    seconds = time.perf_counter() - started
    trainer.model.load_state_dict(trained)  # the next stage's losses follow equally many steps on every side
    return {
        "stage": stage.name,
        "events_per_s": sum(events(batch) for batch in timed) / seconds,
        "flop_per_event": counter.get_total_flops() / events(batches[0]),
        "loss": sum(losses) / len(losses),
    }


def measure_side(side: str, preset_name: str, dataset: Path, *, steps: int) -> list[Row]:
    """Every stage, in this process, whose code this side changes."""
    if side == "fathom":
        keep_freed_memory()
    else:
        vars(blocks).update(silu_attention=plain_attention, dropout=F.dropout)
        vars(model).update(dropout=F.dropout)
        vars(objectives).update(partition=plain_partition)
    trainer = Trainer(
        preset(preset_name), Dataset.load(dataset), torch.device("cpu"), None, Path("unused"), lambda _: None
    )
    rng = np.random.default_rng(0)
    batches = make_batches(trainer, side, steps + MORE, rng)
    return [measure_stage(trainer, stage, side, batches, steps, rng) for stage in trainer.stages]


if __name__ == "__main__":
    side, name, folder, steps = sys.argv[1:]
    print(json.dumps(measure_side(side, name, Path(folder), steps=int(steps))))
