"""A small LayeredModel whose layers matter as much as one says: the example for authors of methods and models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.importance.interface import LayerTensors, per_sample_gradients


@dataclass(frozen=True)
class ToyBatch:
    """inputs float (samples, positions, width); labels int64 (samples,); real bool (samples, positions)."""

    inputs: Tensor
    labels: Tensor
    real: Tensor


class GatedToy(nn.Module):
    """Layer i adds ``gates[i] * tanh(linear_i(hidden))``; the mean of the real positions is read out as logits.

    A gate of 0 makes a layer irrelevant (the identity, without any gradient); a large one makes it decisive.
    """

    gates: Tensor

    def __init__(self, gates: Sequence[float], *, width: int = 8, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("gates", torch.tensor(gates))
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in gates)
        self.readout = nn.Linear(width, classes, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=width**-0.5, generator=generator)

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers, in order."""
        return tuple(range(len(self.blocks)))

    def samples(self, batch: ToyBatch) -> int:
        """How many there are."""
        return len(batch.labels)

    def embed(self, batch: ToyBatch) -> Tensor:
        """The inputs, (samples, positions, width)."""
        return batch.inputs

    def run_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # noqa: ARG002
        """hidden + gate * tanh(linear(hidden)), (samples, positions, width)."""
        return hidden + self.gates[layer] * torch.tanh(self.blocks[layer](hidden))

    def losses(self, batch: ToyBatch, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross entropy (samples,)."""
        return F.cross_entropy(
            self._logits(batch, hidden), batch.labels if labels is None else labels, reduction="none"
        )

    def log_probabilities(self, batch: ToyBatch, hidden: Tensor) -> Tensor:
        """Log softmax over the classes, (samples, classes)."""
        return self._logits(batch, hidden).log_softmax(-1)

    def run_last_layer(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:
        """All positions are read, (samples, positions, width)."""
        return self.run_layer(batch, layer, hidden)

    def judge(self, batch: ToyBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy, and how many other classes score as high as the right one, (samples,) each."""
        scores = self.log_probabilities(batch, hidden)
        own = scores.gather(1, batch.labels[:, None])
        return -own[:, 0], (scores >= own).sum(1) - 1

    def targets(self, batch: ToyBatch) -> Tensor:
        """The readout row of the right class, (samples, width)."""
        return self.readout.weight.detach()[batch.labels]

    def attention(self, batch: ToyBatch, layer: int, hidden: Tensor) -> None:
        """The toy has no attention."""

    def sample_labels(self, batch: ToyBatch, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Classes drawn from the softmax, (samples,)."""
        probabilities = self._logits(batch, hidden).softmax(-1).nan_to_num(nan=1.0)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)

    def input_of(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # noqa: ARG002
        """The state that the layer before leaves."""
        return hidden

    def real_positions(self, batch: ToyBatch, layer: int | None = None) -> Tensor:  # noqa: ARG002
        """``batch.real``, (samples, positions)."""
        return batch.real

    def layer_parameters(self, layer: int) -> LayerTensors:
        """The weight of one layer."""
        return {name: value.detach() for name, value in self.blocks[layer].named_parameters()}

    def layer_gradients(self, batch: ToyBatch, labels: Tensor | None = None) -> Mapping[int, LayerTensors]:
        """Gradients of the cross entropy, (samples, width, width) each."""
        parameters = {f"blocks.{layer}.weight": self.layer_parameters(layer)["weight"] for layer in self.layers}

        def loss(parameters: dict[str, Tensor], inputs: Tensor, label: Tensor, real: Tensor) -> Tensor:
            one = ToyBatch(inputs[None], label[None], real[None])
            value: Tensor = torch.func.functional_call(self, parameters, (one,))
            return value

        labels = batch.labels if labels is None else labels
        gradients = per_sample_gradients(loss, parameters, (batch.inputs, labels, batch.real))
        return {layer: {"weight": gradients[f"blocks.{layer}.weight"]} for layer in self.layers}

    def forward(self, batch: ToyBatch) -> Tensor:
        """The summed loss of a batch, a scalar, which functional_call needs."""
        hidden = self.embed(batch)
        for layer in self.layers:
            hidden = self.run_layer(batch, layer, hidden)
        return self.losses(batch, hidden).sum()

    def _logits(self, batch: ToyBatch, hidden: Tensor) -> Tensor:
        real = batch.real[..., None]
        logits: Tensor = self.readout((hidden * real).sum(1) / real.sum(1))
        return logits


def toy_batches(count: int, samples: int, *, positions: int = 3, width: int = 8, classes: int = 5) -> list[ToyBatch]:
    """Random batches, equal at every call."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        inputs = torch.randn(samples, positions, width, generator=generator)
        labels = torch.randint(classes, (samples,), generator=generator)
        real = torch.rand(samples, positions, generator=generator) < 0.7
        real[:, -1] = True
        batches.append(ToyBatch(inputs, labels, real))
    return batches
