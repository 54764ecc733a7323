"""A tiny dataset, untrained but not symmetric checkpoints on it, and one bundle that was really exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import made_once

from fathom.exporter.bundle import export as bundle_writer
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.engine_set import EngineSet, segment_specs
from fathom.exporter.engines.pieces import Pieces
from fathom.exporter.engines.segments import assemble
from fathom.importance.lattice.lattice import Lattice, all_masks
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.counting import CountingExit, fit_counting
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel, ModelConfig
from fathom.training.presets import TrainConfig, preset

ITEMS, USERS, MAX_HISTORY = 40, 60, 20

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """60 users with 3 to 40 events over 40 items, hours apart."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 41, USERS)
    events = int(lengths.sum())
    items = rng.integers(0, ITEMS, events).astype(np.int32)
    times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, events))
    return Dataset(
        sequences=Sequences(items, np.concatenate([[0], np.cumsum(lengths)]), times),
        item_ids=tuple(f"item-{i}" for i in range(ITEMS)),
        titles=tuple(f"Title {i}" if i % 3 else "" for i in range(ITEMS)),
        categories=tuple(("drama",) if i % 2 else () for i in range(ITEMS)),
        user_ids=tuple(f"user-{i}" for i in range(USERS)),
        meta={},
        sha256="d" * 64,
    )


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    """Training that takes a second."""
    config = preset("tiny")
    return config.model_copy(update={"train": config.train.model_copy(update={"heal_epochs": 1})})


@pytest.fixture(scope="session")
def make_checkpoint(dataset: Dataset, train_config: TrainConfig) -> MakeCheckpoint:
    """A function that makes a checkpoint whose layers all differ: ``make_checkpoint(block="gated", seed=3)``."""

    def make(*, seed: int = 0, **model: Any) -> Checkpoint:
        shape = {"width": 16, "heads": 2, "max_history": MAX_HISTORY, "items": ITEMS, **model}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ElasticModel(ModelConfig.model_validate(shape)).eval()
            with torch.no_grad():
                for weights in network.parameters():
                    weights += 0.1 * torch.randn_like(weights)
                network.embedding.weight[0] = 0
        return Checkpoint(
            model=network,
            config=CheckpointConfig(
                model=network.config, train=train_config, dataset=dataset.sha256, split="leave-one-out"
            ),
            item_ids=dataset.item_ids,
            titles=dataset.titles,
            categories=dataset.categories,
            metrics={},
            sha256="c" * 64,
        )

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Checkpoint:
    """A chain of four depths over 16 hstu layers that read timestamps."""
    return make_checkpoint(time_bias=True)


@pytest.fixture(scope="session")
def pieces(checkpoint: Checkpoint) -> Pieces:
    """The traced pieces of ``checkpoint``: tracing takes seconds, so most tests share it."""
    return Pieces(checkpoint.model)


@pytest.fixture(scope="session")
def engines(pieces: Pieces) -> EngineSet:
    """The engines of ``checkpoint``."""
    model = pieces.model
    return EngineSet.of(model, {spec.file: assemble(pieces, spec) for spec in segment_specs(model.config.paths)})


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Checkpoint, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoint`` as a bundle. Shared: copy it before editing."""

    def make(folder: Path) -> None:
        export(checkpoint, dataset, folder / "bundle", name="tiny")

    return made_once(tmp_path_factory, "export", make) / "bundle"


@pytest.fixture(scope="session")
def counting_bundle(checkpoint: Checkpoint, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bundle_path`` with counting in every depth's scores, whatever tuning finds."""

    def fitted(*args: Any, **kwargs: Any) -> CountingExit:
        return replace(fit_counting(*args, **kwargs), weights=dict.fromkeys(checkpoint.model.depths, 0.3))

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_writer, "fit_counting", fitted)
            export(checkpoint, dataset, folder / "bundle", name="tiny")

    return made_once(tmp_path_factory, "export-counting", make) / "bundle"


@pytest.fixture(scope="session")
def make_ranking() -> Callable[..., LayerRanking]:
    """A function that makes the LayerRanking whose consensus is a given order; ``greedy``: that of its elimination."""

    def method(order: list[int]) -> MethodScores:
        scores = tuple(1 - order.index(layer) / len(order) for layer in range(len(order)))
        ranks = tuple(order.index(layer) + 1 for layer in range(len(order)))
        return MethodScores(scores, scores, scores, ranks, 0.0)

    def make(order: list[int], *, greedy: list[int] | None = None, checkpoint: str | None = None) -> LayerRanking:
        methods = {"one": method(order), **({"greedy_elimination": method(greedy)} if greedy else {})}
        return LayerRanking(
            layers=len(order),
            checkpoint=checkpoint,
            dataset=None,
            users=1,
            seed=0,
            methods=methods,
            kendall_tau={a: dict.fromkeys(methods, 1.0) for a in methods},
            consensus_scores=methods["one"].scores,
            consensus_order=tuple(order),
        )

    return make


@pytest.fixture(scope="session")
def make_lattice() -> Callable[..., Lattice]:
    """A function that makes a whole Lattice of random losses and places: ``make_lattice(6, seed=1)``."""

    def make(layers: int, *, seed: int = 0, users: int = 40, checkpoint: str | None = None) -> Lattice:
        random = np.random.default_rng(seed)
        shape = (users, 2**layers)
        losses = random.normal(5, 1, shape).astype(np.float32)
        places = random.integers(0, 30, shape, dtype=np.int32)
        return Lattice(layers, all_masks(layers), losses, places, {"checkpoint": checkpoint}, tuple(range(layers)))

    return make
