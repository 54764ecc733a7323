"""What an importance method may see of a model, and what a method is.

A method works on any model that implements ``LayeredModel``; it never learns what a batch holds. The model is taken
apart at its layer boundaries, so that skipping layers, hidden states and re-using a common prefix all follow from
``embed``, ``run_layer`` and ``losses``:

    embed -> hidden 0 -> layer -> hidden 1 -> layer -> ... -> hidden L -> losses
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = Any  # opaque to methods: only the model that made it knows what is inside

LayerTensors = Mapping[str, Tensor]


class LayeredModel(Protocol):
    """A model made of residual layers, each of which can be left out: its output is then its input.

    A batch holds samples (here: users); no sample may influence another one's hidden states or loss.
    Hidden states are float (samples, positions, width). Nothing random happens while it runs (no dropout).
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer indices in execution order: a permutation of 0..L-1."""
        ...

    def samples(self, batch: Batch) -> int:
        """How many samples a batch holds."""
        ...

    def embed(self, batch: Batch) -> Tensor:
        """The input of the first layer, (samples, positions, width)."""
        ...

    def run_layer(self, batch: Batch, layer: int, hidden: Tensor) -> Tensor:
        """The output of one layer at all positions, of the same shape as its input."""
        ...

    def losses(self, batch: Batch, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """-log p(label) of each sample, (samples,), from the last layer's output; the true labels by default."""
        ...

    def log_probabilities(self, batch: Batch, hidden: Tensor) -> Tensor:
        """log p(label) of every label, (samples, labels), from the last layer's output."""
        ...

    def run_last_layer(self, batch: Batch, layer: int, hidden: Tensor) -> Tensor:
        """The output of a layer that no other follows: where only some positions are read, only those are computed."""
        ...

    def judge(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's loss and the place of its true label, from 0, among the answers that count, both (samples,).

        Equal scores count against the true label. ``hidden`` is the last layer's output, of ``run_last_layer`` too.
        """
        ...

    def targets(self, batch: Batch) -> Tensor:
        """What each sample ought to be answered, as a vector, (samples, features): that of its true label."""
        ...

    def attention(self, batch: Batch, layer: int, hidden: Tensor) -> Tensor | None:
        """How much each query of a layer takes from each key, (samples, heads, positions, positions), not negative.

        ``hidden`` is the layer's input. Rows of real positions sum to 1; None for a layer without attention.
        """
        ...

    def sample_labels(self, batch: Batch, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """One label per sample, drawn from the model's own p(label), (samples,) int64."""
        ...

    def real_positions(self, batch: Batch, layer: int | None = None) -> Tensor:
        """Which positions are not padding, bool (samples, positions); at least one per sample.

        ``layer``: of the states that this one takes and gives; None: of all states. Raises NotApplicableError where
        these have several shapes.
        """
        ...

    def input_of(self, batch: Batch, layer: int, hidden: Tensor) -> Tensor:
        """What a layer takes, of its own shape, given the state that the layer before leaves."""
        ...

    def layer_parameters(self, layer: int) -> LayerTensors:
        """The parameters of one layer, by name, detached."""
        ...

    def layer_gradients(self, batch: Batch, labels: Tensor | None = None) -> Mapping[int, LayerTensors]:
        """The gradient of each sample's loss with respect to each layer's parameters, every layer in place.

        layer -> name -> (samples, *parameter shape). ``per_sample_gradients`` does the work.
        """
        ...


class ImportanceMethod(Protocol):
    """A way to score layers; made without arguments by the registry, and without state between calls.

    One that asks for ``layer_gradients`` may say so by ``per_sample_gradients = True``: a large model then gets smaller
    batches.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """One row of layer scores per sample, (samples, layers); column i is layer i, higher is more important.

        A layer's score is the mean of its column, so the rows are what the bootstrap resamples. A method whose
        estimate is not a mean over samples returns jackknife pseudo-values over folds: their mean is the estimate.
        ``batches`` may be iterated more than once; all randomness comes from ``generator`` (on the CPU).
        """
        ...


def run_layers(model: LayeredModel, batch: Batch, hidden: Tensor, layers: Iterable[int]) -> Tensor:
    """Run the given layers one after the other, starting from ``hidden``."""
    for layer in layers:
        hidden = model.run_layer(batch, layer, hidden)
    return hidden


def run_skipping(model: LayeredModel, batch: Batch, skip: Collection[int] = ()) -> Tensor:
    """The last hidden state when the layers in ``skip`` are replaced by the identity."""
    return run_layers(model, batch, model.embed(batch), (layer for layer in model.layers if layer not in skip))


def hidden_states(model: LayeredModel, batch: Batch) -> list[Tensor]:
    """The hidden state at every layer boundary: entry k is the input of the k-th executed layer, entry L the output."""
    states = [model.embed(batch)]
    for layer in model.layers:
        states.append(model.run_layer(batch, layer, states[-1]))
    return states


def inputs_and_outputs(model: LayeredModel, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Each executed layer with its input and output, of one shape, and which positions of them are real.

    As (layer, input, output, real).
    """
    hidden = model.embed(batch)
    for layer in model.layers:
        given = model.input_of(batch, layer, hidden)
        hidden = model.run_layer(batch, layer, given)
        yield layer, given, hidden, model.real_positions(batch, layer)


def newest_positions(real: Tensor) -> Tensor:
    """The last real position of each sample, int64 (samples,), for ``real`` bool (samples, positions)."""
    return (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)


def newest_states(model: LayeredModel, batch: Batch) -> Tensor:
    """Each sample's state at its newest real position, at every boundary, (samples, boundaries, width) float64."""
    newest = newest_positions(model.real_positions(batch))
    rows = torch.arange(len(newest), device=newest.device)
    with torch.no_grad():
        return torch.stack([state[rows, newest] for state in hidden_states(model, batch)], dim=1).double()


def per_sample_gradients(
    loss: Callable[..., Tensor], parameters: Mapping[str, Tensor], samples: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """The gradient of every sample's own loss, name -> (samples, *parameter shape), by ``vmap(grad)``.

    loss(parameters, *sample) -> scalar, where ``sample`` is one row of each tensor in ``samples``.
    Memory: samples x parameters; make batches small enough.
    """
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    in_dims = (None, *(0 for _ in samples))
    # The other parameters still require gradients: without no_grad, autograd would keep a graph of this backward pass.
    with torch.no_grad():
        gradients: dict[str, Tensor] = torch.func.vmap(torch.func.grad(loss), in_dims=in_dims)(detached, *samples)
    return gradients


def states_and_gradients(model: LayeredModel, batch: Batch) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The embedding and every layer's output, (samples, positions, width) each, and the loss's gradient at the outputs.

    No sample influences another one's loss, so the gradient of the sum holds each sample's own.
    """
    with torch.enable_grad():
        states = [model.embed(batch).detach().requires_grad_()]
        for layer in model.layers:
            states.append(run_layers(model, batch, states[-1], [layer]))
        return states, torch.autograd.grad(model.losses(batch, states[-1]).sum(), states[1:])
