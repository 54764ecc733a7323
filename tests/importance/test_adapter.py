"""rank_checkpoint on a small dataset and an untrained model."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.errors import ArtefactError, ConfigError, DataError, MissingExtraError
from fathom.importance.adapter import (
    ElasticLayers,
    drawn_cases,
    measure_checkpoint,
    rank_checkpoint,
    validation_batches,
)
from fathom.importance.registry import method_names
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel, ModelSettings
from fathom.training.presets import TrainConfig
from fathom.training.splits import leave_one_out

USERS, ITEMS = 40, 25


def dataset_of(lengths: list[int]) -> Dataset:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(ITEMS, size=offsets[-1]).astype(np.int32)
    sequences = Sequences(items, offsets, np.sort(rng.integers(1, 10**9, size=offsets[-1])))
    ids, users = tuple(map(str, range(ITEMS))), tuple(map(str, range(len(lengths))))
    return Dataset(sequences, ids, ids, ((),) * ITEMS, users, {}, "d" * 64)


@pytest.fixture
def dataset() -> Dataset:
    return dataset_of(np.random.default_rng(1).integers(3, 30, size=USERS).tolist())


def checkpoint_of(*, layers: int = 4, depth: int | None = None, time_bias: bool = False) -> Checkpoint:
    torch.manual_seed(0)
    settings = ModelSettings(layers=layers, depths=(depth or layers,), width=16, max_history=12, time_bias=time_bias)
    config = settings.for_items(ITEMS)
    whole = CheckpointConfig(model=config, train=TrainConfig(), dataset="d" * 64, split="leave-one-out")
    ids = tuple(map(str, range(ITEMS)))
    return Checkpoint(ElasticModel(config), whole, ids, ids, ((),) * ITEMS, {}, "c" * 64)


@pytest.mark.parametrize("time_bias", [False, True])
def test_a_checkpoint_is_ranked_by_the_default_methods(dataset: Dataset, time_bias: bool, tmp_path: Path) -> None:
    ranking = rank_checkpoint(checkpoint_of(time_bias=time_bias), dataset, users=20)
    assert {"fisher", "gradient", "ablation", "block_influence"} <= ranking.methods.keys()
    assert (ranking.checkpoint, ranking.dataset, ranking.users, ranking.layers) == ("c" * 64, "d" * 64, 20, 4)
    ranking.save(tmp_path / "ranking.json")


def test_all_means_every_method_that_can_judge_the_model_here(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    ranking = rank_checkpoint(checkpoint_of(layers=2), dataset, ["all"], users=12)
    assert ranking.methods.keys() | ranking.left_out.keys() == set(method_names())
    assert "captum is not installed" in ranking.left_out["layer_conductance"]
    assert ranking.left_out.keys() <= {"layer_conductance", "meta_learning"}
    with pytest.raises(MissingExtraError, match="captum"):
        rank_checkpoint(checkpoint_of(layers=2), dataset, ["layer_conductance"], users=12)


def test_a_layer_that_became_the_identity_does_not_matter(dataset: Dataset) -> None:
    checkpoint = checkpoint_of()
    checkpoint.model.block(2).become_identity()
    methods = rank_checkpoint(checkpoint, dataset, ["gradient", "ablation", "block_influence"]).methods
    for scores in methods.values():
        assert abs(scores.scores[2]) < 1e-6
        assert min(abs(scores.scores[layer]) for layer in (0, 1, 3)) > 1e-6


def test_neither_mode_nor_batch_size_changes_the_result(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of()
    first = rank_checkpoint(checkpoint, dataset, ["ablation"], seed=3)
    checkpoint.model.train()
    monkeypatch.setattr("fathom.importance.adapter.GRADIENT_VALUES_PER_BATCH", 1)
    second = rank_checkpoint(checkpoint, dataset, ["ablation"], seed=3)
    np.testing.assert_allclose(first.methods["ablation"].scores, second.methods["ablation"].scores, atol=1e-5)


def test_batches_hold_the_newest_items_of_validation_histories_and_their_targets(dataset: Dataset) -> None:
    cases = leave_one_out(dataset).validation
    model = ElasticLayers(checkpoint_of().model)
    batches = validation_batches(model, cases, users=1000, seed=0)
    expected = {(tuple(cases.histories[i][-12:] + 1), int(cases.targets[i])) for i in range(len(cases))}
    found = {
        (tuple(row[row != 0].tolist()), int(label))
        for batch in batches
        for row, label in zip(batch.items, batch.labels, strict=True)
    }
    assert found == expected
    assert all((batch.items[:, -1] != 0).all() for batch in batches)


def test_a_batch_stays_within_its_padded_positions(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.importance.adapter.POSITIONS_PER_BATCH", 48)
    model = ElasticLayers(checkpoint_of().model)
    batches = validation_batches(model, leave_one_out(dataset).validation, users=1000, seed=0)
    assert sum(len(batch.items) for batch in batches) == USERS
    assert all(batch.items.numel() <= 48 for batch in batches)


def test_the_users_are_drawn_by_the_seed(dataset: Dataset) -> None:
    cases = leave_one_out(dataset).validation
    model = ElasticLayers(checkpoint_of().model)
    first, again, other = (validation_batches(model, cases, users=8, seed=seed)[0].items for seed in (0, 0, 1))
    assert len(first) == 8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mistakes_get_one_line(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="unknown importance method 'fischer'"):
        rank_checkpoint(checkpoint_of(), dataset, ["fischer"])
    with pytest.raises(ArtefactError, match="trained on another dataset"):
        rank_checkpoint(checkpoint_of(), replace(dataset, sha256="e" * 64))
    with pytest.raises(ConfigError, match="nothing to rank: the number of layers is 1,"):
        rank_checkpoint(checkpoint_of(layers=1), dataset)
    with pytest.raises(ConfigError, match="the deepest exit runs 3 of 4 layers; train with depth 4 too"):
        rank_checkpoint(checkpoint_of(depth=3), dataset)
    with pytest.raises(DataError, match="no users to rank layers on"):
        rank_checkpoint(checkpoint_of(), dataset_of([2, 2, 1]))


def test_nan_weights_name_the_layer(dataset: Dataset) -> None:
    checkpoint = checkpoint_of()
    with torch.no_grad():
        next(checkpoint.model.block(1).parameters()).fill_(float("nan"))
    with pytest.raises(ArtefactError, match="the output of layer 1 is NaN or infinite"):
        rank_checkpoint(checkpoint, dataset)


def test_the_lattice_of_a_checkpoint_is_what_each_subset_gives_by_itself(dataset: Dataset, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(time_bias=True)
    lattice = measure_checkpoint(checkpoint, dataset, tmp_path / "lattice", users=20, seed=3)
    assert (lattice.layers, lattice.losses.shape, lattice.about["users"]) == (4, (20, 16), 20)
    model, cases = checkpoint.model, leave_one_out(dataset).validation
    layers = ElasticLayers(model)
    rows = np.concatenate([rows for rows, _ in drawn_cases(layers, cases, users=20, seed=3)])
    for user, row in enumerate(rows):
        history, target = cases.histories[row][-12:], int(cases.targets[row])
        items, times = (
            torch.from_numpy(x)[None] for x in (history.astype(np.int64) + 1, cases.histories.times(row)[-12:])
        )
        for mask in range(16):
            skip = [layer for layer in range(4) if not mask >> layer & 1]
            scores = (
                model(items, times, skip=skip)[4][0, -1] @ model.item_vectors().T
            ).detach() / model.config.temperature
            loss = torch.nn.functional.cross_entropy(scores, torch.tensor(target))
            assert lattice.losses[user, mask] == pytest.approx(loss.item(), abs=1e-5)
            others = np.setdiff1d(np.arange(ITEMS), np.append(cases.histories[row], target))
            assert lattice.places[user, mask] == int((scores[others] >= scores[target]).sum())


def test_a_lattice_is_measured_on_the_users_of_the_ranking_and_can_be_sampled(dataset: Dataset, tmp_path: Path) -> None:
    checkpoint = checkpoint_of()
    whole = measure_checkpoint(checkpoint, dataset, tmp_path / "whole", users=20)
    ablation = rank_checkpoint(checkpoint, dataset, ["ablation"], users=20).methods["ablation"]
    values = -whole.mean("loss")
    assert ablation.scores == pytest.approx([values[15 & ~(1 << layer)] - values[15] for layer in range(4)], abs=1e-5)
    sample = measure_checkpoint(checkpoint, dataset, tmp_path / "sample", users=20, orders=2)
    assert set(sample.masks) < set(whole.masks)
    np.testing.assert_allclose(sample.losses, whole.losses[:, sample.masks], atol=1e-5)
