"""Training speed against the straightforward eager fp32 loop of the same model, and against this machine's peak.

    python -m fathom.benchmarks.experiments.training_throughput ml-100k=build/ml-100k/dataset [PRESET=DATASET ...]

``straightforward`` takes windows as they come and pads each to the longest that is allowed, as the reference code of
SASRec does; it writes attention and softmax as the formulas read, with torch's own dropout and optimizer and the
system's allocator. ``same batches`` is that on Fathom's batches, which hold windows of similar length, and reaches
Fathom's losses. Speed counts events, not padding. Each side is a process of its own, in turns; a figure is the median
over turns. The peak is that of a large fp32 matrix product. The achieved share counts the arithmetic of the plain
formulas on those batches, so that computing a score twice does not count.
Writes ``results/training_throughput.json``; run it on an otherwise idle machine.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fathom.benchmarks.record import run, save_run
from fathom.training import blocks, model, objectives
from fathom.training.batches import Batch, epoch_batches, make_batch
from fathom.training.dataset import Dataset
from fathom.training.presets import preset
from fathom.training.train import Trainer, keep_freed_memory

SIDES = ("straightforward", "same batches", "fathom")
MATRIX = 2048
#: Steps after which Fathom's memory has settled.
MORE = 30


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
    return Batch(F.pad(batch.items, (more, 0)), F.pad(batch.ahead, (0, 0, more, 0), value=-1), times, batch.users)


def events(batch: Batch) -> int:
    """How many positions are not padding."""
    return int((batch.items > 0).sum())


def measure_side(side: str, preset_name: str, dataset: Path, *, steps: int) -> list[dict[str, Any]]:
    """Events per second of each stage on one side, its FLOP per event, and the mean loss, in this process."""
    if side != "fathom":
        vars(blocks).update(silu_attention=plain_attention, dropout=F.dropout)
        vars(model).update(dropout=F.dropout)
        vars(objectives).update(partition=plain_partition)
    else:
        keep_freed_memory()
    config, data = preset(preset_name), Dataset.load(dataset)
    trainer = Trainer(config, data, torch.device("cpu"), None, Path("unused"), lambda _: None)
    rng = np.random.default_rng(0)
    settings, train = config.train, trainer.split.train
    cuts = epoch_batches(train, window=settings.window, tokens=settings.batch_tokens, rng=rng)
    if side == "straightforward":
        windows = rng.permutation(np.concatenate(cuts))
        cuts = np.array_split(windows, len(windows) * settings.window // settings.batch_tokens)
    batches = [make_batch(train, rows, settings.targets_ahead) for rows in cuts[: steps + MORE]]
    if side == "straightforward":
        batches = [padded(batch, settings.window) for batch in batches]
    rows = []
    for stage in trainer.stages:
        optimizer = trainer.optimizer(stage)
        if side != "fathom":
            for group in optimizer.param_groups:
                group["fused"] = False
        with FlopCounterMode(display=False) as counter:
            trainer.step(stage, optimizer, batches[0], rng, 0.0)
        timed = batches[:steps]
        losses = [trainer.step(stage, optimizer, batch, rng, 0.0) for batch in timed]
        trained = copy.deepcopy(trainer.model.state_dict())
        # Memory that is kept is fetched from the kernel once, while the first batches of many shapes go by.
        for batch in batches[steps:] if side == "fathom" else ():
            trainer.step(stage, optimizer, batch, rng, 0.0)
        started = time.perf_counter()
        for batch in timed:
            trainer.step(stage, optimizer, batch, rng, 0.0)
        seconds = time.perf_counter() - started
        trainer.model.load_state_dict(trained)  # the next stage's losses follow equally many steps on every side
        rows.append(
            {
                "stage": stage.name,
                "events_per_s": sum(events(batch) for batch in timed) / seconds,
                "flop_per_event": counter.get_total_flops() / events(batches[0]),
                "loss": sum(losses) / len(losses),
            }
        )
    return rows


def peak_gflops(repetitions: int = 20) -> float:
    """The best of some fp32 products of 2048 x 2048 matrices."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best / 1e9


def main() -> None:
    """Measure both sides in turns, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", nargs="+", metavar="PRESET=DATASET")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    pairs = [tuple(each.partition("=")[::2]) for each in chosen.of]
    if chosen.side:
        (name, folder), *_ = pairs
        print(json.dumps(measure_side(chosen.side, name, Path(folder), steps=chosen.steps)))
        return
    peak = peak_gflops()
    rows = [row for name, folder in pairs for row in _compare(name, folder, chosen.turns, chosen.steps, peak)]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    config = {"turns": chosen.turns, "steps": chosen.steps, "threads": torch.get_num_threads(), "matrix": MATRIX}
    stored = save_run("training_throughput", config=config, result={"peak_gflops": round(peak), "rows": rows}, seed=0)
    print(f"stored in {stored}")


def _compare(name: str, folder: str, turns: int, steps: int, peak: float) -> list[dict[str, Any]]:
    module = ["-m", "fathom.benchmarks.experiments.training_throughput", f"{name}={folder}", "--steps", str(steps)]
    found: dict[str, list[list[dict[str, Any]]]] = {side: [] for side in SIDES}
    for _ in range(turns):
        for side in SIDES:
            done = subprocess.run([sys.executable, *module, "--side", side], check=True, stdout=subprocess.PIPE)
            found[side].append(json.loads(done.stdout))
    rows = []
    for index, first in enumerate(found["same batches"][0]):
        speeds = {side: median(turn[index]["events_per_s"] for turn in found[side]) for side in SIDES}
        ours = speeds["fathom"]
        achieved = ours * first["flop_per_event"] / 1e9
        rows.append(
            {
                "preset": name,
                "stage": first["stage"],
                "events_per_s": {side: round(speed) for side, speed in speeds.items()},
                "ratio": round(ours / speeds["straightforward"], 2),
                "ratio_same_batches": round(ours / speeds["same batches"], 2),
                "achieved_gflops": round(achieved, 1),
                "share_of_peak": round(achieved / peak, 3),
                "losses": {side: round(found[side][0][index]["loss"], 4) for side in SIDES},
            }
        )
    return rows


if __name__ == "__main__":
    run(main)
