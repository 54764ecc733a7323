"""The methods that run the model forward: networks whose answer is known, and each formula worked out another way.

What all of them have in common is in test_forward_methods_in_common.py.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.errors import DataError, NotApplicableError
from fathom.importance.interface import hidden_states, run_layers, run_skipping
from fathom.importance.methods.activation import Activation
from fathom.importance.methods.activation_patching import ActivationPatching
from fathom.importance.methods.attention import Attention
from fathom.importance.methods.cka import CKA, debiased_hsic
from fathom.importance.methods.gradient_flow import GradientFlow
from fathom.importance.methods.spectral import Spectral, effective_rank
from fathom.importance.methods.uncertainty import Uncertainty, jensen_shannon
from fathom.importance.methods.zero_shot import ZeroShot
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches

ORDER = (2, 0, 1)


class Shuffled(GatedToy):
    """Executes layer 2 first, so that a column in the wrong place is noticed."""

    @property
    def layers(self) -> tuple[int, ...]:
        return ORDER


class Attending(Shuffled):
    """Has the attention it is told, layers x (positions, positions), the same for all samples and in both heads."""

    def __init__(self, attention: Tensor) -> None:
        super().__init__([1.0] * len(attention))
        self.told = attention

    def attention(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        return self.told[layer].expand(len(hidden), 2, -1, -1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def boundaries(model: GatedToy, batch: ToyBatch) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """layer -> its input and its output."""
    states = [state.detach().double().numpy() for state in hidden_states(model, batch)]
    return {layer: (states[place], states[place + 1]) for place, layer in enumerate(model.layers)}


def test_activation_is_the_size_of_the_update_relative_to_the_input() -> None:
    model, (batch,) = Shuffled([1.0, 0.5, 0.2]), toy_batches(1, 6)
    rows = Activation().scores(model, [batch], generator())
    for layer, (before, after) in boundaries(model, batch).items():
        for sample, real in enumerate(batch.real.numpy()):
            added, found = (after - before)[sample, real], before[sample, real]
            expected = np.sqrt(np.mean(added**2)) / np.sqrt(np.mean(found**2))
            assert rows[sample, layer].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_flow_equals_the_gradient_of_each_sample_alone() -> None:
    model, (batch,) = Shuffled([1.0, 0.5, 0.2]), toy_batches(1, 6)
    rows = GradientFlow().scores(model, [batch], generator())
    for sample in range(6):
        alone = ToyBatch(*(part[sample : sample + 1] for part in (batch.inputs, batch.labels, batch.real)))
        for place, layer in enumerate(model.layers):
            output = hidden_states(model, alone)[place + 1].detach().requires_grad_()
            model.losses(alone, run_layers(model, alone, output, ORDER[place + 1 :])).backward()
            torch.testing.assert_close(rows[sample, layer], output.grad[alone.real].norm())


def test_gradient_flow_of_layers_that_do_nothing_is_that_of_the_readout() -> None:
    model, (batch,) = GatedToy([0.0, 0.0]), toy_batches(1, 6)
    probabilities = model.log_probabilities(batch, batch.inputs).exp().detach()
    wrong = probabilities - torch.nn.functional.one_hot(batch.labels, 5)
    expected = (wrong @ model.readout.weight.detach()).norm(dim=1) / batch.real.sum(1).sqrt()
    rows = GradientFlow().scores(model, [batch], generator())
    torch.testing.assert_close(rows, expected[:, None].expand(6, 2))


def test_attention_of_a_layer_that_looks_at_itself_moves_nothing() -> None:
    itself, oldest = torch.eye(3), torch.tensor([[1.0, 0, 0]] * 3)
    batch = ToyBatch(torch.randn(1, 3, 8), torch.zeros(1).long(), torch.ones(1, 3).bool())
    rows = Attention().scores(Attending(torch.stack([itself, oldest, itself])), [batch], generator())
    # The other half of what the newest position holds comes past the layer.
    assert rows.tolist() == [[0.0, 0.5, 0.0]]


def test_attention_equals_the_rollout_with_and_without_the_layer() -> None:
    attention = torch.rand(3, 4, 4, generator=generator()).tril()
    attention = attention / attention.sum(-1, keepdim=True)
    batch = ToyBatch(torch.randn(1, 4, 8), torch.zeros(1).long(), torch.tensor([[True, True, True, False]]))
    (row,) = Attention().scores(Attending(attention), [batch], generator())
    steps = {layer: (attention[layer].double().numpy() + np.eye(4)) / 2 for layer in ORDER}
    first, second, third = (steps[layer] for layer in ORDER)
    rollout = third @ second @ first
    without = {ORDER[0]: third @ second, ORDER[1]: third @ first, ORDER[2]: second @ first}
    expected = [np.abs(rollout[2] - without[layer][2]).sum() / 2 for layer in range(3)]
    np.testing.assert_allclose(row.numpy(), expected, rtol=1e-5)


def test_attention_needs_attention_weights() -> None:
    with pytest.raises(NotApplicableError, match="needs a model with attention weights; layer 0 has none"):
        Attention().scores(GatedToy([1.0, 1.0]), toy_batches(1, 2), generator())


def hsic_of_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, with the kernel matrices written out."""
    n, ones = len(x), np.ones(len(x))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    middle = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + middle - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))


def test_cka_equals_the_formula_with_kernel_matrices_and_left_out_folds() -> None:
    model, batches = Shuffled([1.0, 0.5, 0.2]), toy_batches(2, 15)
    rows = CKA().scores(model, batches, generator())
    both = [boundaries(model, batch) for batch in batches]
    newest = [int(np.flatnonzero(real)[-1]) for batch in batches for real in batch.real.numpy()]
    for layer in range(3):
        x, y = (np.concatenate([of[layer][side] for of in both])[range(30), newest] for side in (0, 1))

        def change(keep: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            x, y = x[keep], y[keep]
            return 1 - hsic_of_kernels(x, y) / np.sqrt(hsic_of_kernels(x, x) * hsic_of_kernels(y, y))

        samples = np.arange(30)
        expected = [10 * change(samples) - 9 * change(samples[samples % 10 != fold]) for fold in range(10)]
        np.testing.assert_allclose(rows[:, layer].numpy(), expected, atol=1e-6)


def test_hsic_of_unrelated_features_is_zero_on_average_however_few_the_samples() -> None:
    draws = torch.randn(300, 2, 8, 30, generator=generator(), dtype=torch.float64)
    across = torch.stack([debiased_hsic(x, y) for x, y in draws])
    own = torch.stack([debiased_hsic(x, x) for x, _ in draws])
    assert abs(across.mean() / own.mean()) < 0.02


@pytest.mark.parametrize(("method", "fewest"), [(CKA(), 5), (Spectral(), 2), (ActivationPatching(), 2)])
def test_too_few_samples_are_refused(method: CKA | Spectral | ActivationPatching, fewest: int) -> None:
    model = GatedToy([1.0, 0.5])
    with pytest.raises(DataError, match=f"needs at least {fewest}"):
        method.scores(model, toy_batches(1, fewest - 1), generator())
    assert method.scores(model, toy_batches(1, fewest), generator()).isfinite().all()


def test_spectral_equals_the_singular_values_of_all_states() -> None:
    model, batches = Shuffled([1.0, 0.5, 0.2]), toy_batches(2, 15)
    rows = Spectral().scores(model, batches, generator())
    both = [boundaries(model, batch) for batch in batches]
    reals = np.concatenate([batch.real.numpy() for batch in batches])
    for layer in range(3):
        x, y = (np.concatenate([of[layer][side] for of in both]) for side in (0, 1))

        def log_rank(states: np.ndarray, keep: np.ndarray) -> float:
            weighted = [states[sample, reals[sample]] / np.sqrt(reals[sample].sum()) for sample in keep]
            singular = np.linalg.svd(np.concatenate(weighted), compute_uv=False)
            shares = singular / singular.sum()
            return float(-np.sum(shares * np.log(shares)))

        def change(keep: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            return log_rank(y, keep) - log_rank(x, keep)

        samples = np.arange(30)
        expected = [10 * change(samples) - 9 * change(samples[samples % 10 != fold]) for fold in range(10)]
        np.testing.assert_allclose(rows[:, layer].numpy(), np.sign(change(samples)) * np.array(expected), atol=1e-6)


def test_the_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6)
    one = torch.randn(6, 1, generator=generator())
    assert effective_rank(one @ one.T).item() == pytest.approx(1, abs=1e-2)


def test_zero_shot_sees_weights_and_nothing_else() -> None:
    model, batches = GatedToy([1.0, 1.0, 1.0]), toy_batches(2, 4)
    before = ZeroShot().scores(model, batches, generator())
    white = torch.randn(4000, 8, generator=generator())
    gains = torch.stack([block(white).square().mean().sqrt() for block in model.blocks]).detach()
    torch.testing.assert_close(before[0], gains, rtol=0.02, atol=0)
    assert torch.equal(before, before[:1].expand(8, 3))
    with torch.no_grad():
        model.blocks[0].weight.mul_(3)
        model.blocks[1].weight.zero_()
    model.gates[2] = 0.0  # a buffer, which weights alone do not tell
    after = ZeroShot().scores(model, batches, generator())
    torch.testing.assert_close(after, before * torch.tensor([3.0, 0.0, 1.0]))


def test_zero_shot_needs_weight_matrices() -> None:
    class Bare(GatedToy):
        def layer_parameters(self, layer: int) -> dict[str, Tensor]:
            return {"gain": torch.ones(2, 1, 1)} if layer else dict(super().layer_parameters(layer))

    with pytest.raises(NotApplicableError, match="the zero_shot method needs weight matrices; layer 1 has none"):
        ZeroShot().scores(Bare([1.0, 1.0]), toy_batches(1, 2), generator())


def patched_by_hand(model: GatedToy, own: ToyBatch, donor: ToyBatch) -> Tensor:
    """The rises of the loss of a batch of one when a donor gives, position by position from the newest on."""
    rises = torch.zeros(len(model.layers))
    for place, layer in enumerate(model.layers):
        states, given = hidden_states(model, own), hidden_states(model, donor)
        patched = states[place + 1].clone()
        mine, theirs = (batch.real[0].nonzero().flatten().tolist()[::-1] for batch in (own, donor))
        for position, other in zip(mine, theirs, strict=False):
            patched[0, position] = states[place][0, position] + given[place + 1][0, other] - given[place][0, other]
        without = run_layers(model, own, patched, model.layers[place + 1 :])
        rises[layer] = (model.losses(own, without) - model.losses(own, run_skipping(model, own)))[0]
    return rises.detach()


def test_activation_patching_gives_the_newest_position_to_the_newest() -> None:
    real = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])
    inputs = torch.randn(2, 5, 8, generator=generator())
    pair, model = ToyBatch(inputs, torch.tensor([1, 3]), real), Shuffled([1.0, 0.5, 0.7])
    first, second = (ToyBatch(inputs[i : i + 1], pair.labels[i : i + 1], real[i : i + 1]) for i in (0, 1))
    expected = torch.stack([patched_by_hand(model, first, second), patched_by_hand(model, second, first)])
    torch.testing.assert_close(ActivationPatching().scores(model, [pair], generator()), expected)
    # Batches of one take from the batch before, the first of them from the one after, whatever their widths.
    shorter = ToyBatch(second.inputs[:, 2:], second.labels, second.real[:, 2:])
    torch.testing.assert_close(ActivationPatching().scores(model, [first, shorter], generator()), expected)


def test_activation_patching_does_not_see_what_is_added_to_everybody() -> None:
    class Constant(GatedToy):
        def run_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:
            return hidden + 1.5 if layer == 0 else super().run_layer(batch, layer, hidden)

    rows = ActivationPatching().scores(Constant([1.0, 1.0]), toy_batches(1, 20), generator())
    assert rows[:, 0].abs().max() < 1e-5
    assert rows[:, 1].abs().min() > 1e-3


def test_uncertainty_of_two_layers_equals_going_through_all_sub_networks() -> None:
    model, (batch,) = GatedToy([1.5, 0.7]), toy_batches(1, 6)
    answers = {}
    for coins in product([False, True], repeat=2):
        hidden = run_skipping(model, batch, [layer for layer in (0, 1) if not coins[layer]])
        answers[coins] = model.log_probabilities(batch, hidden).exp().detach().double().numpy()
    expected = np.zeros((6, 2))
    for other in (False, True):
        for layer, (p, q) in enumerate(
            [(answers[True, other], answers[False, other]), (answers[other, True], answers[other, False])]
        ):
            total, aleatoric = entropy((p + q) / 2), (entropy(p) + entropy(q)) / 2
            expected[:, layer] += (total - aleatoric) / 2
    # A sub-network and its complement show both states of the one other layer, whatever is drawn.
    np.testing.assert_allclose(Uncertainty().scores(model, [batch], generator()).numpy(), expected, atol=1e-6)


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(p), axis=-1)


def test_answers_that_exclude_each_other_are_one_bit_apart() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.25, 0.75]])
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor([2.0]).log())
    assert jensen_shannon(p, p).item() == 0
