"""Greedy elimination against an explicit one, and against layers that stand in for each other."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from toys import Careful, Reversed, generator, learned, part_of

from fathom.errors import DataError
from fathom.importance.interface import LayeredModel, run_skipping
from fathom.importance.methods.ablation import Ablation
from fathom.importance.methods.greedy_elimination import GreedyElimination, SubsetMeans, eliminate
from fathom.importance.statistics import order_by
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches

GATES = [0.6, 0.2, 1.0, 0.4, 0.8]


class StandIns(GatedToy):
    """Layers 0 and 1 both cut off what is negative: either can go, but not both."""

    def run_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:
        return hidden.clamp(min=0) if layer < 2 else super().run_layer(batch, layer, hidden)


def scores_of(model: LayeredModel, batches: Iterable[ToyBatch]) -> Tensor:
    return GreedyElimination().scores(model, batches, generator()).mean(0)


def explicit(model: GatedToy, batch: ToyBatch) -> list[int]:
    """The layers in the order of their removal, by loops."""
    gone: list[int] = []
    while len(gone) < len(model.layers):
        losses = {
            layer: model.losses(batch, run_skipping(model, batch, {*gone, layer})).mean().item()
            for layer in model.layers
            if layer not in gone
        }
        gone.append(min(losses, key=lambda layer: losses[layer]))
    return gone


@pytest.mark.parametrize("seed", range(4))
def test_the_places_are_those_of_an_explicit_elimination(seed: int) -> None:
    model = GatedToy(GATES, seed=seed)
    (batch,) = learned(model, toy_batches(1, 40))
    gone = explicit(model, batch)
    scores = scores_of(model, [batch])
    torch.testing.assert_close(scores[gone], torch.arange(5.0, dtype=torch.float64))
    assert order_by(scores) == gone[::-1]


def test_the_runs_without_a_fold_are_those_on_the_other_samples() -> None:
    model = GatedToy(GATES)
    (batch,) = learned(model, toy_batches(1, 33))
    means = SubsetMeans(model, [batch])
    runs = eliminate(means, 5)
    assert runs.shape == (11, 5)
    for fold in range(10):
        others = part_of(batch, torch.arange(33) % 10 != fold)
        assert runs[1 + fold].argsort().tolist() == explicit(model, others)
        loss = model.losses(others, run_skipping(model, others)).mean()
        assert means[0b11111][1 + fold] == pytest.approx(loss.item(), rel=1e-5)


def test_every_subset_is_measured_once() -> None:
    model, (batch,) = GatedToy(GATES), toy_batches(1, 33)
    ran: list[int] = []

    class Counted(SubsetMeans):
        def measure(self, masks: set[int]) -> None:
            ran.extend(masks - self._known.keys())
            super().measure(masks)

    means = Counted(model, [batch])
    eliminate(means, 5)
    assert len(ran) == len(set(ran)) == len(means)
    assert 15 <= len(means) <= 2**5


def test_irrelevant_layers_go_before_one_that_helps_and_the_decisive_layer_is_left() -> None:
    model = GatedToy([0.5, 0.0, 2.0, 0.0])
    scores = scores_of(model, learned(model, toy_batches(4, 32)))
    assert scores.tolist() == pytest.approx([2, 1, 3, 0])


def test_layers_that_do_the_same_go_from_the_last_index_on() -> None:
    assert scores_of(GatedToy([0.0] * 4), toy_batches(1, 20)).tolist() == [3, 2, 1, 0]


def test_of_two_layers_that_stand_in_for_each_other_one_is_important() -> None:
    model = StandIns([1.0, 1.0, 0.0, 0.05])
    batches = learned(model, toy_batches(4, 32))
    alone = Ablation().scores(model, batches, generator()).mean(0)
    assert alone[:2].tolist() == [0, 0]
    scores = scores_of(model, batches)
    assert scores[0] == pytest.approx(3)
    assert scores[1] < 2


def test_columns_follow_the_layer_index_not_the_execution_order() -> None:
    model = Reversed([0.5, 0.0, 2.0])
    assert scores_of(model, learned(model, toy_batches(2, 32))).tolist() == pytest.approx([1, 0, 2])


def test_rows_are_folds_whatever_the_batches() -> None:
    model, (whole,) = GatedToy(GATES), toy_batches(1, 24)
    rows = GreedyElimination().scores(model, [whole], generator())
    assert rows.shape == (10, 5)
    parts = [part_of(whole, slice(17)), part_of(whole, slice(17, 24))]
    torch.testing.assert_close(GreedyElimination().scores(model, parts, generator()), rows)
    assert GreedyElimination().scores(model, [part_of(whole, slice(3))], generator()).shape == (3, 5)


def test_padding_is_not_read_even_if_it_is_nan() -> None:
    model, (batch,) = Careful(GATES), toy_batches(1, 24)
    spoiled = ToyBatch(batch.inputs.masked_fill(~batch.real[..., None], float("nan")), batch.labels, batch.real)
    assert torch.equal(scores_of(model, [spoiled]), scores_of(model, [batch]))


def test_one_sample_is_too_few() -> None:
    with pytest.raises(DataError, match="needs at least 2 samples, not 1"):
        scores_of(GatedToy(GATES), toy_batches(1, 1))
