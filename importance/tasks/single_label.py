"""Tasks with one right answer of many: a class, an item, an action, one of some vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import draw, logits_of, one_hot, place_of

TOP = 10


@dataclass(frozen=True)
class Classification:
    """One class of several. Labels: int64 (samples,); output: logits (samples, classes)."""

    name: str = "classification"

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Inputs:  # noqa: ARG002
        """As they are."""
        return inputs

    def scores(self, output: Any) -> Tensor:
        """The score of every answer, (samples, answers)."""
        logits = logits_of(output)
        if logits.dim() != 2:
            raise ConfigError(f"{self.name} needs logits (samples, classes), not of shape {tuple(logits.shape)}")
        return logits

    def losses(self, output: Any, labels: Tensor) -> Tensor:
        """Cross entropy (samples,)."""
        scores = self.scores(output)
        _check(labels, scores.shape[1], self.name)
        return F.cross_entropy(scores.float(), labels, reduction="none")

    def answers(self, output: Any, labels: Tensor) -> Tensor:  # noqa: ARG002
        """One row a sample."""
        return self.scores(output)

    def log_probabilities(self, output: Any, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Log softmax (samples, classes)."""
        return self.scores(output).float().log_softmax(-1)

    def sample_labels(self, output: Any, labels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Classes (samples,)."""
        return draw(self.scores(output), generator)

    def places(self, output: Any, labels: Tensor) -> Tensor:
        """How many other classes score as high as the right one, (samples,)."""
        return place_of(self.scores(output), labels)

    def targets(self, labels: Tensor) -> Tensor:
        """One-hot (samples, largest label + 1)."""
        return one_hot(labels, int(labels.max()) + 1)

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """The share of right answers."""
        right = [self.places(output, own) == 0 for output, own in zip(outputs, labels, strict=True)]
        return {"accuracy": torch.cat(right).float().mean().item()}


@dataclass(frozen=True)
class Retrieval(Classification):
    """The right one of ``candidates`` (n, width) for a query's vector (samples, width), by cosine.

    Labels: int64 (samples,), its row. The query's vector is the model's output, or the mean of its last hidden states
    over all positions, padding too: wrap a model whose vector is another. ``temperature``: cosines are divided by it.
    """

    name: str = "retrieval"
    candidates: Tensor | None = None
    temperature: float = 0.05

    def scores(self, output: Any) -> Tensor:
        """Cosine with every candidate over the temperature, (samples, candidates)."""
        if self.candidates is None:
            raise ConfigError(f"{self.name} needs candidates, a tensor (n, width) of what may be retrieved")
        query = _vector(output)
        if query.shape[1] != self.candidates.shape[1]:
            raise ConfigError(f"queries have width {query.shape[1]}, candidates {self.candidates.shape[1]}")
        answers = F.normalize(self.candidates.to(query.device), dim=1)
        return F.normalize(query.float(), dim=1) @ answers.T / self.temperature

    def targets(self, labels: Tensor) -> Tensor:
        """The right candidate (samples, width)."""
        assert self.candidates is not None
        return self.candidates[labels.cpu()].to(labels.device)

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """Recall at 1 and NDCG at 10."""
        places = torch.cat([self.places(output, own) for output, own in zip(outputs, labels, strict=True)])
        gains = torch.where(places < TOP, 1 / torch.log2(places + 2.0), 0.0)
        return {"ndcg@10": gains.mean().item(), "recall@1": (places == 0).float().mean().item()}


@dataclass(frozen=True)
class Recommendation(Classification):
    """The next item. Labels: int64 (samples,), the item; output: scores (samples, items)."""

    name: str = "recommendation"

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """NDCG and hit rate at 10."""
        places = torch.cat([self.places(output, own) for output, own in zip(outputs, labels, strict=True)])
        gains = torch.where(places < TOP, 1 / torch.log2(places + 2.0), 0.0)
        return {"ndcg@10": gains.mean().item(), "hit@10": (places < TOP).float().mean().item()}


@dataclass(frozen=True)
class ReinforcementLearning(Classification):
    """A policy over actions, imitating what was done. Labels: int64 (samples,), the action; output: logits."""

    name: str = "reinforcement_learning"

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """The share of actions that are the same."""
        return {"same_action": super().metrics(outputs, labels)["accuracy"]}


def _vector(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output if output.dim() == 2 else output.mean(1)
    for name in ("embeddings", "text_embeds", "image_embeds", "last_hidden_state", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value if value.dim() == 2 else value.mean(1)
    return _vector(logits_of(output))


def _check(labels: Tensor, answers: int, task: str) -> None:
    if labels.dim() != 1 or labels.is_floating_point():
        raise ConfigError(f"{task} needs one integer label for each sample, not {labels.dtype} {tuple(labels.shape)}")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= answers):
        raise ConfigError(f"{task}: a label lies outside of the model's {answers} answers")
