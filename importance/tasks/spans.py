"""Question answering by a span of the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import draw, logits_of, place_of


@dataclass(frozen=True)
class QuestionAnswering:
    """Where the answer begins and ends. Labels: int64 (samples, 2), the first and the last position."""

    name: str = "question_answering"

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Inputs:  # noqa: ARG002
        """As they are."""
        return inputs

    def losses(self, output: Any, labels: Tensor) -> Tensor:
        """The mean cross entropy of both ends, (samples,)."""
        if labels.dim() != 2 or labels.shape[1] != 2:
            raise ConfigError(f"{self.name} needs a first and a last position for each sample, (samples, 2)")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= _ends(output)[0].shape[1]):
            raise ConfigError(f"{self.name}: a label lies outside of the positions that the model reads")
        both = [F.cross_entropy(ends.float(), labels[:, n], reduction="none") for n, ends in enumerate(_ends(output))]
        return torch.stack(both).mean(0)

    def answers(self, output: Any, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Two rows a sample."""
        return torch.cat(_ends(output))

    def log_probabilities(self, output: Any, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Of the first position, (samples, positions)."""
        return _ends(output)[0].float().log_softmax(-1)

    def sample_labels(self, output: Any, labels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Both ends, each drawn alone."""
        return torch.stack([draw(ends, generator) for ends in _ends(output)], dim=1)

    def places(self, output: Any, labels: Tensor) -> Tensor:
        """The place of the right first position, (samples,)."""
        return place_of(_ends(output)[0], labels[:, 0])

    def targets(self, labels: Tensor) -> Tensor:
        """Both positions as numbers, (samples, 2)."""
        return labels.float()

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """The share of exact spans."""
        right = [
            torch.stack([ends.argmax(-1) == own[:, n] for n, ends in enumerate(_ends(output))]).all(0)
            for output, own in zip(outputs, labels, strict=True)
        ]
        return {"exact_match": torch.cat(right).float().mean().item()}


def _ends(output: Any) -> tuple[Tensor, Tensor]:
    return logits_of(output, "start_logits"), logits_of(output, "end_logits")
