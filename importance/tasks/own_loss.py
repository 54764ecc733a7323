"""Tasks whose loss only the user can say: detection, and all that fits nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import not_with

#: The loss of every sample, (samples,), from a model's output and the labels.
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class OwnLoss:
    """A loss of one's own; without probabilities, so that methods which need them do not apply.

    ``metric``: what is reported beside the loss, from an output and labels, one number per sample.
    """

    name: str = "detection"
    loss: Loss | None = None
    metric: Callable[[Any, Any], Tensor] | None = None

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Any) -> Inputs:  # noqa: ARG002
        """As they are."""
        return inputs

    def losses(self, output: Any, labels: Any) -> Tensor:
        """As the user's function says."""
        if self.loss is None:
            raise ConfigError(f"{self.name} needs a loss: loss(output, labels) -> (samples,)")
        found = self.loss(output, labels)
        if found.dim() != 1:
            raise ConfigError(f"{self.name}: the loss must have one value per sample, not shape {tuple(found.shape)}")
        return found

    def answers(self, output: Any, labels: Any) -> Tensor:  # noqa: ARG002
        """There are none."""
        raise not_with(self.name, "scores of its answers")

    def log_probabilities(self, output: Any, labels: Any) -> Tensor:  # noqa: ARG002
        """There are none."""
        raise not_with(self.name, "probabilities of its answers")

    def sample_labels(self, output: Any, labels: Any, generator: torch.Generator) -> Any:  # noqa: ARG002
        """There are none to draw from."""
        raise not_with(self.name, "probabilities to draw labels from")

    def places(self, output: Any, labels: Any) -> Tensor:
        """There is no list of answers: 0 for all."""
        return torch.zeros(len(self.losses(output, labels)), dtype=torch.long)

    def targets(self, labels: Any) -> Tensor:  # noqa: ARG002
        """There is no vector of an answer."""
        raise not_with(self.name, "vectors of its answers")

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """Minus the mean loss, and the metric."""
        pairs = list(zip(outputs, labels, strict=True))
        found = {"minus_loss": -torch.cat([self.losses(*pair) for pair in pairs]).mean().item()}
        if self.metric is not None:
            found["metric"] = torch.cat([self.metric(*pair) for pair in pairs]).float().mean().item()
        return found
