"""A network that has learned nothing, where only its size matters: python -m ... BUNDLE writes a bundle with one."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.benchmarks.record import run
from fathom.exporter.bundle.export import export
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel, ModelConfig
from fathom.training.presets import preset

USERS = 50
SEED = 0


def untrained(*, items: int, **shape: Any) -> tuple[Checkpoint, Dataset]:
    """Such a network of this ``shape``, and a few random users for what an export measures."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(20, 200, USERS)
    events = int(lengths.sum())
    sequences = Sequences(
        rng.integers(0, items, events).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        1_600_000_000 + np.cumsum(rng.integers(60, 90_000, events)),
    )
    ids = tuple(map(str, range(items)))
    dataset = Dataset(sequences, ids, ("",) * items, ((),) * items, tuple(map(str, range(USERS))), {}, "0" * 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ElasticModel(ModelConfig(items=items, **shape)).eval()
    config = CheckpointConfig(
        model=model.config, train=preset("ml-100k"), dataset=dataset.sha256, split="leave-one-out"
    )
    return Checkpoint(model, config, ids, dataset.titles, dataset.categories, {}, "0" * 64), dataset


def main() -> None:
    """Write such a bundle."""
    parser = argparse.ArgumentParser(prog="python -m fathom.benchmarks.untrained", description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--items", type=int, default=1_682)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--max-history", type=int, default=200)
    options = parser.parse_args()
    checkpoint, dataset = untrained(items=options.items, width=options.width, max_history=options.max_history)
    export(checkpoint, dataset, options.bundle, name=f"untrained-{options.width}")
    print(f"wrote {options.bundle}")


if __name__ == "__main__":
    run(main)
