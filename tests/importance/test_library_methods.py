"""The methods that stand on a library, against known answers and against independent computations."""

import json
import math
import sys
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.special import digamma
from torch import Tensor, nn
from toys import (
    DECISIVE,
    IRRELEVANT,
    WEAK,
    Careful,
    Reversed,
    check_rows,
    elastic,
    generator,
    histories,
    learned,
    part_of,
)

from fathom.errors import ArtefactError, ConfigError, DataError, MissingExtraError, NotApplicableError
from fathom.files import write_json
from fathom.importance.features import principal_components
from fathom.importance.interface import ImportanceMethod, hidden_states, run_layers, run_skipping
from fathom.importance.lattice.lattice import all_masks, judge_subsets
from fathom.importance.lattice.values import shapley_values
from fathom.importance.methods.information_bottleneck import InformationBottleneck, held_out_log_density
from fathom.importance.methods.layer_conductance import STEPS, LayerConductance, mean_embedding
from fathom.importance.methods.meta_learning import FEATURES, MetaLearning, features, ranks, train_on
from fathom.importance.methods.mutual_information import MutualInformation
from fathom.importance.methods.shapley import PERMUTATIONS, Shapley
from fathom.importance.methods.topology import Topology, diagrams, distances
from fathom.importance.statistics import Floats, kendall_tau
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches


class Stretching(GatedToy):
    """Every layer makes the state longer, and turns it."""

    def run_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # noqa: ARG002
        return 3 * hidden.flip(-1)


def exact_values(model: GatedToy, batches: list[ToyBatch]) -> Floats:
    """The Shapley value of each layer for each sample, (samples, layers), from all subsets."""
    masks = all_masks(len(model.layers))
    losses = np.concatenate([judge_subsets(model, batch, masks)[0] for batch in batches])
    return shapley_values(-losses.astype(np.float64))


def random_toy(seed: int) -> tuple[GatedToy, list[ToyBatch]]:
    gates = torch.rand(6, generator=torch.Generator().manual_seed(seed)) ** 2
    model = GatedToy(gates.tolist(), seed=seed)
    return model, learned(model, toy_batches(1, 48))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MetaLearning learns from ten toys."""
    examples = []
    for seed in range(10):
        model, batches = random_toy(seed)
        examples.append((features(model, batches, generator()), exact_values(model, batches).mean(0)))
    path = tmp_path_factory.mktemp("trained") / "meta_learning.json"
    write_json(path, train_on(examples, [f"toy {seed}" for seed in range(10)]))
    return path


@pytest.fixture(
    params=[MutualInformation, LayerConductance, Shapley, InformationBottleneck, Topology, MetaLearning],
    ids=lambda kind: kind.__name__,
)
def method(request: pytest.FixtureRequest, trained: Path, monkeypatch: pytest.MonkeyPatch) -> ImportanceMethod:
    """Each method; mutual information with fewer pairs of components, for time's sake."""
    monkeypatch.setattr("fathom.importance.methods.mutual_information.COMPONENTS", 2)
    made: ImportanceMethod = MetaLearning(trained) if request.param is MetaLearning else request.param()
    return made


FOLDED = (MutualInformation, Topology, MetaLearning)
AT_THE_NEWEST = (MutualInformation, InformationBottleneck)


@pytest.mark.parametrize("decisive", [0, 2, 4])
def test_irrelevant_layers_score_zero_and_the_decisive_layer_wins(
    method: ImportanceMethod, decisive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The inputs vary alike in all 8 directions, so that fewer components would be any.
    monkeypatch.setattr("fathom.importance.methods.mutual_information.COMPONENTS", 4)
    gates = [WEAK, IRRELEVANT, WEAK, IRRELEVANT, WEAK]
    gates[decisive] = DECISIVE
    model = GatedToy(gates)
    # What answers are read from must be what the method looks at.
    batches = toy_batches(4, 64, positions=1) if isinstance(method, AT_THE_NEWEST) else toy_batches(4, 32)
    scores = method.scores(model, learned(model, batches), generator()).mean(0)
    assert scores.argmax() == decisive
    if isinstance(method, MetaLearning):
        return
    assert scores[[1, 3]].tolist() == [0, 0]
    assert scores[decisive] > 3 * scores[[layer for layer in (0, 2, 4) if layer != decisive]].abs().max()


def test_columns_follow_the_layer_index_not_the_execution_order(method: ImportanceMethod) -> None:
    model = Reversed([WEAK, IRRELEVANT, DECISIVE])
    batches = toy_batches(2, 64, positions=1)
    scores = method.scores(model, learned(model, batches), generator()).mean(0)
    assert scores.argmax() == 2
    assert scores[1] == 0 or isinstance(method, MetaLearning)


def test_rows_are_samples_or_folds_whatever_the_batches(method: ImportanceMethod) -> None:
    model, whole, rows = check_rows(method, FOLDED)
    parts = [part_of(whole, slice(17)), part_of(whole, slice(17, 23)), part_of(whole, slice(23, 24))]
    torch.testing.assert_close(method.scores(model, parts, generator()), rows, rtol=1e-4, atol=1e-5)


def test_padding_is_not_read_even_if_it_is_nan(method: ImportanceMethod) -> None:
    model, (batch,) = Careful([1.0, 0.5, 0.2]), toy_batches(1, 12)
    spoiled = ToyBatch(batch.inputs.masked_fill(~batch.real[..., None], float("nan")), batch.labels, batch.real)
    rows = method.scores(model, [spoiled], generator())
    assert rows.isfinite().all()
    torch.testing.assert_close(rows, method.scores(model, [batch], generator()))


def test_a_sequence_model_may_be_padded_further(method: ImportanceMethod) -> None:
    model = elastic()
    rows = method.scores(model, histories(model, 24, padding=0), generator())
    torch.testing.assert_close(
        method.scores(model, histories(model, 24, padding=3), generator()), rows, rtol=1e-5, atol=1e-6
    )


def test_a_block_that_became_the_identity_does_not_matter(method: ImportanceMethod) -> None:
    if isinstance(method, MetaLearning):
        pytest.skip("it ranks")
    model = elastic()
    model._model.block(2).become_identity()
    scores = method.scores(model, histories(model, 24, padding=0), generator()).mean(0)
    assert scores[2] == 0
    assert scores[[0, 1, 3]].abs().min() > 1e-6


@pytest.mark.parametrize(
    ("kind", "library"),
    [
        (MutualInformation, "sklearn.feature_selection"),
        (LayerConductance, "captum.attr"),
        (Shapley, "shap"),
        (InformationBottleneck, "sklearn.linear_model"),
        (Topology, "ripser"),
        (Topology, "persim"),
    ],
)
def test_a_library_that_is_not_installed_is_one_clear_line(
    kind: type[ImportanceMethod], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"installed; run: pip install 'fathom-recommender\[importance\]'"):
        kind().scores(GatedToy([1.0, 0.5]), toy_batches(1, 12), generator())


@pytest.mark.parametrize("kind", [MutualInformation, InformationBottleneck, Topology])
def test_too_few_samples_are_one_clear_line(kind: type[ImportanceMethod]) -> None:
    model = GatedToy([1.0, 0.5])
    assert kind().scores(model, toy_batches(1, 5), generator()).shape == (5, 2)
    with pytest.raises(DataError, match="needs at least 5 samples, not 4"):
        kind().scores(model, toy_batches(1, 4), generator())


# ---- mutual information


def kraskov(x: Floats, y: Floats, neighbours: int) -> float:
    """The estimator of Kraskov et al. 2004, equation 8, by counting."""
    x, y = np.abs(x[:, None] - x), np.abs(y[:, None] - y)
    joint = np.maximum(x, y)
    np.fill_diagonal(joint, np.inf)
    radius = np.sort(joint, 1)[:, neighbours - 1][:, None]
    closer = [(distance < radius).sum(1) - 1 for distance in (x, y)]
    total = digamma(neighbours) + digamma(len(x)) - sum(digamma(count + 1).mean() for count in closer)
    return max(0.0, float(total))


def test_mutual_information_equals_an_explicit_one() -> None:
    class Continuous(GatedToy):
        def targets(self, batch: ToyBatch) -> Tensor:
            return super().targets(batch) + 0.1 * batch.inputs[:, -1]

    model, (batch,) = Continuous([1.0, 0.5]), toy_batches(1, 60)
    states = [state[:, -1].detach().double() for state in hidden_states(model, batch)]

    def components(points: Tensor) -> Floats:
        centred = points - points.mean(0)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :4]
        scaled = centred @ axes
        return (scaled / scaled.std(0, correction=0)).numpy()

    answers = components(model.targets(batch).double())
    told = [sum(kraskov(one, other, 8) for one, other in product(components(state).T, answers.T)) for state in states]
    scores = MutualInformation().scores(model, [batch], generator()).mean(0)
    np.testing.assert_allclose(scores.numpy(), np.diff(told), atol=1e-6)


def test_mutual_information_of_gaussians_is_what_theory_says() -> None:
    random = torch.Generator().manual_seed(0)
    answer = torch.randn(1500, 1, 1, generator=random)
    noisy = 0.6 * answer + 0.8 * torch.randn(1500, 1, 1, generator=random)

    class Denoising(GatedToy):
        """One layer, which finds the answer in noise of correlation 0.9 with it, given input of correlation 0.6."""

        def run_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # noqa: ARG002
            return 0.9 * answer + math.sqrt(0.19) * (hidden - 0.6 * answer) / 0.8

        def targets(self, batch: ToyBatch) -> Tensor:  # noqa: ARG002
            return answer[:, 0]

    batch = ToyBatch(noisy, torch.zeros(1500).long(), torch.ones(1500, 1).bool())
    (score,) = MutualInformation().scores(Denoising([1.0], width=1), [batch], generator()).mean(0)
    assert score == pytest.approx(math.log(0.8 / math.sqrt(0.19)), abs=0.06)


def test_principal_components_leave_out_directions_without_variance() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2)) @ np.array([[3.0, 0, 0, 0], [0, 1, 1, 0]])
    components = principal_components(points, 4)
    assert components.shape == (20, 2)
    np.testing.assert_allclose(components.T @ components, np.diag(np.diag(components.T @ components)), atol=1e-9)
    assert principal_components(np.ones((20, 3)), 4).shape == (20, 0)


# ---- conductance


class Plain(nn.Module):
    """The toy as captum likes it: the batch as tensors that it can repeat, one hook for each layer's update."""

    def __init__(self, model: GatedToy) -> None:
        super().__init__()
        self.model = model
        self.updates = nn.ModuleList(nn.Identity() for _ in model.layers)

    def forward(self, hidden: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        batch = ToyBatch(hidden, labels, real)
        for layer in self.model.layers:
            hidden = hidden + self.updates[layer](self.model.run_layer(batch, layer, hidden) - hidden)
        return -self.model.losses(batch, hidden)


@pytest.fixture
def conducted() -> tuple[GatedToy, ToyBatch, Tensor, Tensor]:
    """A model, a batch, its baseline, and the conductance of its layers."""
    model = GatedToy([0.9, 0.0, 0.6, 0.3])
    (batch,) = learned(model, toy_batches(1, 9))
    baseline = torch.where(batch.real[..., None], mean_embedding(model, [batch]), 0.0)
    return model, batch, baseline, LayerConductance().scores(model, [batch], generator())


def test_conductance_equals_captum_s_of_one_layer_at_a_time(
    conducted: tuple[GatedToy, ToyBatch, Tensor, Tensor],
) -> None:
    from captum.attr import LayerConductance as Conductance

    model, batch, baseline, rows = conducted
    plain, inputs = Plain(model), torch.where(batch.real[..., None], batch.inputs, 0.0)
    for layer in model.layers:
        there, back = (
            Conductance(plain, plain.updates[layer]).attribute(
                end,
                start,
                additional_forward_args=(batch.labels, batch.real),
                n_steps=STEPS,
                method="riemann_trapezoid",
            )
            for end, start in ((inputs, baseline), (baseline, inputs))
        )
        expected = torch.where(batch.real[..., None], (there - back) / 2, 0.0).sum((1, 2)).detach()
        torch.testing.assert_close(rows[:, layer], expected, rtol=1e-4, atol=1e-5)


def test_conductance_equals_an_explicit_integral_for_each_sample_alone(
    conducted: tuple[GatedToy, ToyBatch, Tensor, Tensor],
) -> None:
    model, batch, baseline, rows = conducted
    for sample in range(0, 9, 4):
        one, real = part_of(batch, slice(sample, sample + 1)), batch.real[sample : sample + 1, :, None]
        start, end = baseline[sample : sample + 1], torch.where(real, one.inputs, 0.0)
        updates, slopes = [], []
        for share in torch.linspace(0, 1, STEPS + 1):
            hidden, own = start + share * (end - start), []
            for layer in model.layers:
                own.append((model.run_layer(one, layer, hidden) - hidden).detach().requires_grad_())
                # The layers below answer to a change of this update, so it is added and not put in their place.
                hidden = model.run_layer(one, layer, hidden) + own[-1] - own[-1].detach()
            slopes.append(torch.autograd.grad(-model.losses(one, hidden).sum(), own))
            updates.append(own)
        for layer in model.layers:
            steps = zip(pairwise(slopes), pairwise(updates), strict=True)
            flow = sum(
                ((first[layer] + second[layer]) / 2 * (after[layer] - before[layer]) * real).sum()
                for (first, second), (before, after) in steps
            )
            torch.testing.assert_close(rows[sample, layer], torch.as_tensor(flow).detach(), rtol=1e-4, atol=1e-5)


def test_what_flows_through_a_layer_and_past_it_is_all_that_the_prediction_gains(
    conducted: tuple[GatedToy, ToyBatch, Tensor, Tensor],
) -> None:
    model, batch, baseline, rows = conducted
    real = batch.real[..., None]
    inputs = torch.where(real, batch.inputs, 0.0)

    def after(hidden: Tensor, first: int) -> Tensor:
        return -model.losses(batch, run_layers(model, batch, hidden, model.layers[first:]))

    gained = (after(inputs, 0) - after(baseline, 0)).detach()
    assert gained.abs().max() > 1
    for place, layer in enumerate(model.layers):
        past = torch.zeros(9)
        states, slopes = [], []
        for share in torch.linspace(0, 1, STEPS + 1):
            hidden = run_layers(model, batch, baseline + share * (inputs - baseline), model.layers[:place])
            out = model.run_layer(batch, layer, hidden).detach().requires_grad_()
            slopes.append(torch.autograd.grad(after(out, place + 1).sum(), out)[0])
            states.append(hidden.detach())
        for (first, second), (before, later) in zip(pairwise(slopes), pairwise(states), strict=True):
            past += ((first + second) / 2 * (later - before) * real).sum((1, 2))
        # The error of 16 steps of the trapezoid rule is of the order of 1/16^2.
        torch.testing.assert_close(rows[:, layer] + past, gained, rtol=0.005, atol=0.01)


def test_the_baseline_is_the_mean_of_real_positions_of_all_samples() -> None:
    model, batches = GatedToy([1.0]), toy_batches(3, 5)
    rows = torch.cat([batch.inputs[batch.real] for batch in batches])
    torch.testing.assert_close(mean_embedding(model, batches), rows.mean(0))


# ---- Shapley values


def test_shapley_values_sum_to_what_all_layers_gain() -> None:
    model = GatedToy([1.0, 0.5, 0.2, 0.7])
    (batch,) = learned(model, toy_batches(1, 12))
    rows = Shapley().scores(model, [batch], generator())
    gained = model.losses(batch, model.embed(batch)) - model.losses(batch, run_skipping(model, batch))
    torch.testing.assert_close(rows.sum(1), gained.detach().double(), rtol=0, atol=1e-6)


def test_shapley_values_of_two_layers_are_exact() -> None:
    model, batches = GatedToy([1.0, 0.5]), toy_batches(2, 6)
    rows = Shapley().scores(model, batches, generator()).numpy()
    np.testing.assert_allclose(rows, exact_values(model, batches), atol=1e-6)


def test_shapley_values_are_those_of_all_subsets_within_the_error_of_the_orders_drawn() -> None:
    model = GatedToy([1.0, 0.5, 0.2, 0.7])
    (batch,) = learned(model, toy_batches(1, 12))
    losses = {mask: run_skipping_losses(model, batch, mask) for mask in range(2**4)}
    estimates = []
    for order in permutations(range(4)):
        gains = np.zeros((12, 4))
        for way in (order, order[::-1]):
            mask = 0
            for layer in way:
                gains[:, layer] += (losses[mask] - losses[mask | 1 << layer]) / 2
                mask |= 1 << layer
        estimates.append(gains)
    exact = np.mean(estimates, axis=0)
    np.testing.assert_allclose(exact, exact_values(model, [batch]), atol=1e-6)
    error = np.std(estimates, axis=0) / math.sqrt(PERMUTATIONS)
    rows = Shapley().scores(model, [batch], generator()).numpy()
    assert (np.abs(rows - exact) < 4 * error + 1e-6).all()
    assert (np.abs(rows - exact) > 1e-5).any()


def run_skipping_losses(model: GatedToy, batch: ToyBatch, mask: int) -> Floats:
    skip = {layer for layer in model.layers if not mask >> layer & 1}
    losses: Floats = model.losses(batch, run_skipping(model, batch, skip)).detach().double().numpy()
    return losses


def test_shapley_leaves_numpy_s_random_state_as_it_was() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    rows = Shapley().scores(GatedToy([1.0, 0.5, 0.7]), toy_batches(1, 4), generator())
    assert np.random.random() == expected
    other = Shapley().scores(GatedToy([1.0, 0.5, 0.7]), toy_batches(1, 4), torch.Generator().manual_seed(4))
    assert not torch.equal(other, rows)


# ---- information bottleneck


def test_the_held_out_density_equals_an_explicit_one() -> None:
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(30, 3)), random.normal(size=(30, 2))
    targets[:, 0] += 2 * inputs[:, 1]
    expected = np.zeros(30)
    for left_out in range(10):
        held, kept = np.arange(30) % 10 == left_out, np.arange(30) % 10 != left_out
        middle, spread = inputs[kept].mean(0), inputs[kept].std(0)

        def predict(rows: Floats, answers: Floats, at: Floats, penalty: float) -> Floats:
            slope = np.linalg.solve(
                (rows - rows.mean(0)).T @ (rows - rows.mean(0)) + penalty * np.eye(3),
                (rows - rows.mean(0)).T @ (answers - answers.mean()),
            )
            return answers.mean() + (at - rows.mean(0)) @ slope

        rows, at = (inputs[kept] - middle) / spread, (inputs[held] - middle) / spread
        for answers, true in zip(targets[kept].T, targets[held].T, strict=True):
            best, penalty = math.inf, 0.0
            for power in range(6):
                others = [np.arange(27) != one for one in range(27)]
                errors = [
                    answers[~other] - predict(rows[other], answers[other], rows[~other], 10.0**power)
                    for other in others
                ]
                best, penalty = min((best, penalty), (float(np.square(errors).mean()), 10.0**power))
            errors_there = true - predict(rows, answers, at, penalty)
            expected[held] += -0.5 * np.log(2 * np.pi * best) - errors_there**2 / (2 * best)
    np.testing.assert_allclose(held_out_log_density(inputs, targets), expected, rtol=1e-6)


def test_the_bound_of_gaussians_is_what_theory_says() -> None:
    random = np.random.default_rng(0)
    told = random.normal(size=(2000, 3))
    answer = 0.8 * told[:, :1] + 0.6 * random.normal(size=(2000, 1))
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert held_out_log_density(told, answer).mean() + entropy == pytest.approx(-math.log(0.6), abs=0.05)
    assert held_out_log_density(told[::-1], answer).mean() + entropy == pytest.approx(0, abs=0.05)


# ---- topology


def test_the_components_die_along_the_minimum_spanning_tree() -> None:
    cloud = distances(np.random.default_rng(0).normal(size=(40, 5)))
    components, _ = diagrams(cloud)
    tree = np.sort(minimum_spanning_tree(cloud).data) / cloud[~np.eye(40, dtype=bool)].mean()
    np.testing.assert_allclose(np.sort(components[:, 1]), tree, rtol=1e-6)
    assert (components[:, 0] == 0).all()


def test_a_circle_has_one_loop() -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    _, loops = diagrams(distances(np.stack([np.cos(angle), np.sin(angle)], axis=1)))
    ((birth, death),) = loops[loops[:, 1] - loops[:, 0] > 0.1]
    # Chords of a circle are 4/pi long in the mean; the loop closes with the inscribed triangle.
    assert birth * 4 / np.pi == pytest.approx(2 * np.sin(np.pi / 60), rel=0.05)
    assert death * 4 / np.pi == pytest.approx(math.sqrt(3), rel=0.05)


def test_topology_equals_the_libraries_own_distance() -> None:
    from persim import wasserstein
    from ripser import ripser

    model, (batch,) = GatedToy([1.0, 0.5]), toy_batches(1, 30)
    clouds = []
    for state in hidden_states(model, batch):
        points = state[:, -1].detach().double().numpy()
        unit = np.mean([np.linalg.norm(a - b) for place, a in enumerate(points) for b in points[:place]])
        clouds.append(ripser(points / unit)["dgms"])
    expected = [
        (wasserstein(before[0][:-1], after[0][:-1]) + wasserstein(before[1], after[1])) / 30
        for before, after in pairwise(clouds)
    ]
    scores = Topology().scores(model, [batch], generator()).mean(0)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_stretching_and_turning_does_not_change_the_shape() -> None:
    scores = Topology().scores(Stretching([1.0, 1.0]), toy_batches(1, 20), generator()).mean(0)
    assert scores.abs().max() < 1e-6


# ---- meta-learning


def test_importance_learned_from_ten_toys_transfers_to_three_others(trained: Path) -> None:
    for seed in range(10, 13):
        model, batches = random_toy(seed)
        scores = MetaLearning(trained).scores(model, batches, generator()).mean(0)
        assert kendall_tau(scores.numpy(), exact_values(model, batches).mean(0)) > 0.5


def test_the_prediction_is_linear_in_the_features(trained: Path) -> None:
    model, batches = random_toy(20)
    learned_from = json.loads(trained.read_text())
    assert learned_from["trained_on"][0] == "toy 0"
    expected = features(model, batches, generator()) @ learned_from["coefficients"] + learned_from["intercept"]
    scores = MetaLearning(trained).scores(model, batches, generator()).mean(0)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_features_are_ranks_within_the_model() -> None:
    model, batches = random_toy(20)
    found = features(model, batches, generator())
    assert found.shape == (6, len(FEATURES))
    assert np.abs(found).max() == 1
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-12)
    assert (found[:, FEATURES.index("attention")] == 0).all()
    np.testing.assert_allclose(found[:, 0], np.linspace(-1, 1, 6))
    louder = GatedToy(model.gates.tolist(), seed=20)
    louder.readout.weight.data *= 0.5
    np.testing.assert_array_equal(features(louder, batches, generator())[:, 2:6], found[:, 2:6])


def test_taylor_is_the_slope_of_the_loss_when_a_layer_fades_out() -> None:
    gates = torch.tensor([0.9, 0.4, 0.6])
    model, (batch,) = GatedToy(gates.tolist()), toy_batches(1, 20)
    model.gates = gates.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.losses(batch, run_skipping(model, batch)).mean(), model.gates)
    found = features(model, [batch], generator())[:, FEATURES.index("taylor")]
    np.testing.assert_array_equal(found, ranks((-slope * gates).numpy()))


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == pytest.approx([1, -2 / 3, -2 / 3, 1 / 3])


def test_meta_learning_that_has_learned_nothing_is_one_clear_line(tmp_path: Path) -> None:
    model, batches = random_toy(0)
    with pytest.raises(NotApplicableError, match="meta_learning has not been trained; measure lattices"):
        MetaLearning(tmp_path / "meta_learning.json").scores(model, batches, generator())


def test_meta_learning_from_a_single_model_or_other_features_is_one_clear_line(tmp_path: Path) -> None:
    model, batches = random_toy(0)
    own = features(model, batches, generator())
    with pytest.raises(ConfigError, match="at least 2 models, not 1"):
        train_on([(own, np.arange(6.0))], ["one"])
    value = train_on([(own, np.arange(6.0)), (own, np.arange(6.0))], ["one", "two"])
    write_json(tmp_path / "meta_learning.json", value | {"features": ["place"]})
    with pytest.raises(ConfigError, match="trained on other features than place, "):
        MetaLearning(tmp_path / "meta_learning.json").scores(model, batches, generator())
    write_json(tmp_path / "meta_learning.json", value | {"coefficients": [1.0]})
    with pytest.raises(ArtefactError, match="lacks the intercept or the coefficient of a feature"):
        MetaLearning(tmp_path / "meta_learning.json").scores(model, batches, generator())
