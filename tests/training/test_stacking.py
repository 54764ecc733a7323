"""Stacked exits: a deeper exit leaves the shallower ones as they are, and is never worse on validation items."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.errors import ConfigError
from fathom.training.model import ElasticModel
from fathom.training.splits import leave_one_out
from fathom.training.stacking import is_gain, train_only
from fathom.training.train import TrainProgress, fit, ndcg_at_10
from tests.training.test_train import Interrupted, same_bits, stop_at, tiny, walk, weights

STACKED = ("train.exits=stacked", "train.grow_epochs=3", "train.batch_tokens=128")


def test_deeper_exits_leave_the_shallower_ones_and_the_items_as_they_are(tmp_path: Path) -> None:
    short = fit(tiny(*STACKED, "train.epochs=1"), walk(), out=tmp_path / "a")
    long = fit(tiny(*STACKED, "train.epochs=4", "train.learning_rate=0.01"), walk(), out=tmp_path / "b")
    same = {name for name, value in weights(short).items() if torch.equal(value, weights(long)[name])}
    shallow = {name for name in weights(short) if name.startswith(("embedding", "layers.0", "layers.1", "exits.2"))}
    assert shallow <= same
    assert not any(name.startswith("layers.2.out") for name in same)


def test_no_exit_is_worse_on_validation_items_than_a_shallower_one(tmp_path: Path) -> None:
    data = walk()
    config = tiny(*STACKED, "train.epochs=4", "train.learning_rate=0.01")
    model = fit(config, data, out=tmp_path / "c").model
    two, three, four = ndcg_at_10(model, leave_one_out(data).validation, (2, 3, 4), 1000).values()
    assert two.mean() <= three.mean() <= four.mean()
    assert four.mean() > two.mean()


def test_an_exit_that_gains_nothing_answers_as_the_one_below(tmp_path: Path) -> None:
    # A rate so high that what is learned can only be worse.
    model = fit(tiny(*STACKED, "train.epochs=1", "train.learning_rate=5"), walk(), out=tmp_path / "c").model
    vectors = model(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(vectors[3], vectors[2], rtol=0, atol=0)
    torch.testing.assert_close(vectors[4], vectors[2], rtol=0, atol=0)


@pytest.mark.parametrize("where", [("exit 3", 1, 2), ("exit 4", 1, 1), ("exit 4", 2, 2)])
def test_an_interrupted_stack_goes_on_to_the_same_bits(tmp_path: Path, where: tuple[str, int, int]) -> None:
    config = tiny(*STACKED, "train.epochs=2")
    whole = fit(config, walk(), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(config, walk(), out=tmp_path / "parts", progress=stop_at(*where))
    assert same_bits(whole, fit(config, walk(), out=tmp_path / "parts"))


def test_healing_in_the_order_that_was_stacked_changes_nothing_and_another_order_is_healed(tmp_path: Path) -> None:
    config = tiny(*STACKED, "train.epochs=1")
    start = fit(config, walk(), out=tmp_path / "c")
    assert same_bits(start, fit(config, walk(), out=tmp_path / "prefix", model=start.model))
    other = start.model.with_paths({2: (0, 3), 3: (0, 3, 1), 4: (0, 3, 1, 2)}, "permuted-prefix")
    seen: list[TrainProgress] = []
    fit(config, walk(), out=tmp_path / "permuted", model=other, progress=seen.append)
    assert {report.stage for report in seen} == {"heal"}


def test_only_what_a_depth_adds_is_trained() -> None:
    model = ElasticModel(tiny().model.for_items(9))
    train_only(model, 4, 3)
    trained = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all(name.startswith(("layers.3", "exits.4")) for name in trained)


def test_a_gain_is_more_than_one_standard_error() -> None:
    others = np.zeros(100)
    noise = np.tile([-1.0, 1.0], 50)
    assert is_gain(noise + 0.11, others)
    assert not is_gain(noise + 0.09, others)
    assert not is_gain(others, others)


def test_a_stack_needs_a_first_exit_that_is_trained() -> None:
    with pytest.raises(ConfigError, match="exits=stacked needs grow_epochs"):
        tiny("train.exits=stacked", "train.grow_epochs=0")
