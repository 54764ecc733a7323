"""The contract of a LayeredModel, held by every implementation in the project."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fathom.importance.adapter import ElasticLayers
from fathom.importance.inputs import Inputs
from fathom.importance.interface import Batch, LayeredModel, hidden_states, run_layers, run_skipping
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.tasks.single_label import Classification
from fathom.importance.toy import GatedToy, toy_batches
from fathom.training.model import ElasticModel, ModelConfig

ITEMS, LAYERS = 30, 4
PATHS = {2: (0, 2), 4: (0, 2, 1, 3)}


def elastic(block: str, *, time_bias: bool) -> tuple[LayeredModel, Batch]:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"items": ITEMS, "block": block, "layers": LAYERS, "paths": PATHS, "strategy": "permuted-prefix"}
        | {"width": 16, "max_history": 12, "time_bias": time_bias}
    )
    model = ElasticModel(config).double()  # so that rounding cannot hide a real difference
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no parameter keeps a special first value
    items = torch.randint(1, ITEMS + 1, (5, 9))
    items[1, :4] = 0
    items[2, :8] = 0
    times = torch.randint(1, 10**9, (5, 9)).sort(1).values * (items != 0) if time_bias else None
    layers = ElasticLayers(model)
    return layers, layers.batch(items, times, torch.randint(ITEMS, (5,)))


class Residual(torch.nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + super().forward(hidden).tanh()


def any_model() -> tuple[LayeredModel, Batch]:
    """A model that nobody wrote for this, through ``ModuleLayers``."""
    torch.manual_seed(0)
    blocks = [Residual(6, 6) for _ in range(LAYERS)]
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Sequential(*blocks), torch.nn.Linear(6, 5)).double()
    layers = ModuleLayers(model, Classification())
    return layers, layers.batch(Inputs((torch.randn(5, 3).double(),)), torch.randint(5, (5,)))


@pytest.fixture(params=["toy", "hstu", "gated", "hstu with time", "gated with time", "any"])
def case(request: pytest.FixtureRequest) -> tuple[LayeredModel, Batch]:
    if request.param == "any":
        return any_model()
    if request.param == "toy":
        return GatedToy([1.0, 0.5, 0.2, 0.1]), toy_batches(1, 5)[0]
    return elastic(request.param.split()[0], time_bias="time" in request.param)


def one_at_a_time(model: LayeredModel, batch: Batch) -> Iterator[tuple[int, Any]]:
    """The loss of each sample, as a graph over the real parameters."""
    for sample in range(len(model.real_positions(batch))):
        yield sample, model.losses(batch, run_skipping(model, batch))[sample]


def live_parameters(model: Any, layer: int) -> dict[str, torch.nn.Parameter]:
    if isinstance(model, ModuleLayers):
        module = model._finder.blocks[layer]
    else:
        module = model.blocks[layer] if isinstance(model, GatedToy) else model._model.block(layer)
    return dict(module.named_parameters())


def test_layers_are_a_permutation_in_execution_order(case: tuple[LayeredModel, Batch]) -> None:
    model, _ = case
    assert sorted(model.layers) == list(range(LAYERS))
    assert model.layers == (PATHS[4] if isinstance(model, ElasticLayers) else (0, 1, 2, 3))


def test_per_sample_gradients_equal_an_explicit_loop(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    gradients = model.layer_gradients(batch)
    for sample, loss in one_at_a_time(model, batch):
        for layer in model.layers:
            named = live_parameters(model, layer)
            expected = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
            assert gradients[layer].keys() == named.keys() == model.layer_parameters(layer).keys()
            for name, value in zip(named, expected, strict=True):
                torch.testing.assert_close(gradients[layer][name][sample], value, rtol=1e-5, atol=1e-6)


def test_gradients_hold_no_graph(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    assert not any(value.requires_grad for layer in model.layer_gradients(batch).values() for value in layer.values())


def test_skipping_every_layer_leaves_the_embedding(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    assert torch.equal(run_skipping(model, batch, skip=range(LAYERS)), model.embed(batch))


def test_hidden_states_are_the_boundaries_of_the_run(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    states = hidden_states(model, batch)
    assert len(states) == LAYERS + 1
    assert torch.equal(states[-1], run_skipping(model, batch))
    second = model.layers[1]
    skipped = run_layers(model, batch, states[1], model.layers[2:])
    assert torch.equal(skipped, run_skipping(model, batch, skip={second}))
    assert states[0].shape[:2] == model.real_positions(batch).shape


def test_a_given_label_replaces_the_true_one(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    hidden = run_skipping(model, batch)
    assert torch.equal(model.losses(batch, hidden), model.losses(batch, hidden, batch.labels))
    assert not torch.equal(model.losses(batch, hidden), model.losses(batch, hidden, (batch.labels + 1) % 5))


def test_labels_are_drawn_from_the_model_s_own_probabilities(case: tuple[LayeredModel, Batch]) -> None:
    model, batch = case
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        hidden = run_skipping(model, batch)
        drawn = torch.stack([model.sample_labels(batch, hidden, generator) for _ in range(300)])
        for label in drawn[:, 0].unique():
            expected = torch.exp(-model.losses(batch, hidden, label.expand(5)))
            assert torch.allclose((drawn == label).double().mean(0), expected.double(), atol=0.12)


def test_the_adapter_gives_the_model_s_own_user_vectors() -> None:
    model, batch = elastic("hstu", time_bias=True)
    assert isinstance(model, ElasticLayers)
    inner = model._model
    logits = inner.user_vectors(batch.items, batch.timestamps) @ inner.item_vectors().T / inner.config.temperature
    expected = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(model.losses(batch, run_skipping(model, batch)), expected)
