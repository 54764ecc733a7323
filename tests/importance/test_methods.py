"""Each method against networks whose layers matter or not by construction, and against its own formula."""

import pytest
import torch
from toys import DECISIVE, IRRELEVANT, WEAK, generator, learned

from fathom.importance.interface import ImportanceMethod, hidden_states, run_skipping
from fathom.importance.methods.ablation import Ablation
from fathom.importance.methods.block_influence import BlockInfluence
from fathom.importance.methods.fisher import Fisher
from fathom.importance.methods.gradient import Gradient
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches

METHODS = [Fisher(), Gradient(), Ablation(), BlockInfluence()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_one_row_per_sample_whatever_the_batches(method: ImportanceMethod) -> None:
    model, (whole,) = GatedToy([1.0, 0.5, 0.2]), toy_batches(1, 6)
    halves = [ToyBatch(whole.inputs[part], whole.labels[part], whole.real[part]) for part in (slice(4), slice(4, 6))]
    rows = method.scores(model, [whole], generator())
    assert rows.shape == (6, 3)
    assert not rows.requires_grad
    torch.testing.assert_close(method.scores(model, halves, generator()), rows)


def test_fisher_equals_an_explicit_loop_over_samples() -> None:
    model, (batch,) = GatedToy([1.0, 0.5, 0.2, 0.7]), toy_batches(1, 12)
    labels = model.sample_labels(batch, run_skipping(model, batch), generator())
    expected = torch.zeros(12, 4)
    for sample in range(12):
        model.zero_grad()
        model.losses(batch, run_skipping(model, batch), labels)[sample].backward()
        for layer in model.layers:
            expected[sample, layer] = model.blocks[layer].weight.grad.square().sum()
    torch.testing.assert_close(Fisher().scores(model, [batch], generator()), expected, rtol=1e-5, atol=0)


def test_fisher_is_not_the_square_of_the_batch_gradient() -> None:
    model, (batch,) = GatedToy([1.0, 0.5]), toy_batches(1, 64)
    labels = model.sample_labels(batch, run_skipping(model, batch), generator())
    model.losses(batch, run_skipping(model, batch), labels).mean().backward()
    squared = torch.stack([block.weight.grad.square().sum() for block in model.blocks])
    assert (Fisher().scores(model, [batch], generator()).mean(0) > 5 * squared).all()


def test_fisher_does_not_depend_on_the_true_labels() -> None:
    model, (batch,) = GatedToy([1.0, 0.5]), toy_batches(1, 8)
    other = ToyBatch(batch.inputs, (batch.labels + 1) % 5, batch.real)
    assert torch.equal(Fisher().scores(model, [batch], generator()), Fisher().scores(model, [other], generator()))
    assert not torch.equal(
        Gradient().scores(model, [batch], generator()), Gradient().scores(model, [other], generator())
    )


def test_the_mean_of_fisher_over_draws_is_the_exact_expectation() -> None:
    model, (batch,) = GatedToy([1.0, 0.5]), toy_batches(1, 1)
    exact = torch.zeros(2)
    for label in range(5):
        model.zero_grad()
        loss = model.losses(batch, run_skipping(model, batch), torch.tensor([label]))
        loss.sum().backward()
        for layer in model.layers:
            exact[layer] += torch.exp(-loss[0]).detach() * model.blocks[layer].weight.grad.square().sum()
    repeated = ToyBatch(
        *(part.repeat(8000, *[1] * (part.dim() - 1)) for part in (batch.inputs, batch.labels, batch.real))
    )
    torch.testing.assert_close(Fisher().scores(model, [repeated], generator()).mean(0), exact, rtol=0.05, atol=0)


def test_gradient_takes_absolute_values_per_sample_so_opposite_users_do_not_cancel() -> None:
    model, (batch,) = GatedToy([1.0, 0.5]), toy_batches(1, 10)
    model.losses(batch, run_skipping(model, batch)).mean().backward()
    of_the_batch = torch.stack([(block.weight * block.weight.grad).abs().sum() for block in model.blocks])
    assert (Gradient().scores(model, [batch], generator()).mean(0) > of_the_batch.detach() * 1.1).all()


def test_ablation_equals_running_without_the_layer() -> None:
    model, (batch,) = GatedToy([1.0, 0.5, 0.2]), toy_batches(1, 6)
    rows = Ablation().scores(model, [batch], generator())
    for layer in model.layers:
        rise = model.losses(batch, run_skipping(model, batch, {layer})) - model.losses(
            batch, run_skipping(model, batch)
        )
        torch.testing.assert_close(rows[:, layer], rise.detach())


def test_block_influence_ignores_padding_even_if_it_is_nan() -> None:
    model, (batch,) = GatedToy([1.0, 0.5, 0.2]), toy_batches(1, 6)
    assert not batch.real.all()
    rows = BlockInfluence().scores(model, [batch], generator())
    spoiled = ToyBatch(batch.inputs.masked_fill(~batch.real[..., None], float("nan")), batch.labels, batch.real)
    assert torch.equal(BlockInfluence().scores(model, [spoiled], generator()), rows)
    states = hidden_states(model, batch)
    cosine = torch.cosine_similarity(states[0][0][batch.real[0]], states[1][0][batch.real[0]], dim=-1)
    torch.testing.assert_close(rows[0, 0], 1 - cosine.mean().detach())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_columns_follow_the_layer_index_not_the_execution_order(method: ImportanceMethod) -> None:
    class Reversed(GatedToy):
        @property
        def layers(self) -> tuple[int, ...]:
            return (2, 1, 0)

    model = Reversed([WEAK, IRRELEVANT, DECISIVE])
    scores = method.scores(model, learned(model, toy_batches(2, 32)), generator()).mean(0)
    assert scores.argmax() == 2
    assert abs(scores[1]) < 1e-6
