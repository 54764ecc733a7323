"""The contract of a task, and reading a model's output."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ConfigError, NotApplicableError
from fathom.importance.inputs import Inputs

#: Marks what is no label: padding, the question of a prompt.
IGNORED = -100

Labels = Any  # what a task's own batches hold; its first axis is the samples'


class Task(Protocol):
    """How a model's output is judged; no sample may influence another one's loss."""

    @property
    def name(self) -> str:
        """As in ``TaskType``."""
        ...

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Labels) -> Inputs:
        """What the model is called with, given what a batch holds beside its labels."""
        ...

    def losses(self, output: Any, labels: Labels) -> Tensor:
        """-log p(label) of each sample, (samples,); for several labels their mean."""
        ...

    def answers(self, output: Any, labels: Labels) -> Tensor:
        """The scores of all answers wherever one is asked for, (rows, answers)."""
        ...

    def log_probabilities(self, output: Any, labels: Labels) -> Tensor:
        """log p of every answer, (samples, answers)."""
        ...

    def sample_labels(self, output: Any, labels: Labels, generator: torch.Generator) -> Labels:
        """Labels drawn from the model's own p, as ``losses`` takes them."""
        ...

    def places(self, output: Any, labels: Labels) -> Tensor:
        """The place of each sample's true answer among all, from 0, int64 (samples,); equal scores count against it."""
        ...

    def targets(self, labels: Labels) -> Tensor:
        """Each sample's true answer as a vector, (samples, features); the same one in every batch, zeros behind it."""
        ...

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Labels]) -> dict[str, float]:
        """What people report of this task, higher is better, over batches."""
        ...


def logits_of(output: Any, name: str = "logits") -> Tensor:
    """The scores in a model's output: the tensor itself, its ``logits``, or the first of several things."""
    found = output
    if not isinstance(output, Tensor):
        found = getattr(output, name, None)
        if found is None and isinstance(output, Mapping):
            found = output.get(name)
        if found is None and name == "logits":
            found = next(iter(output.values() if isinstance(output, Mapping) else output), None)
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise ConfigError(f"the model's output has no {name}; is this the right task for it?")
    return found


def all_scores(output: Any) -> dict[str, Tensor]:
    """Every tensor of scores that a task reads in a model's output: both ends of an answer, or the one there is."""
    if getattr(output, "start_logits", None) is not None:
        return {name: logits_of(output, name) for name in ("start_logits", "end_logits")}
    return {"scores": logits_of(output)}


def place_of(scores: Tensor, labels: Tensor) -> Tensor:
    """How many other answers (samples, answers) score as high as the right one, (samples,)."""
    own = scores.gather(1, labels[:, None])
    return (scores >= own).sum(1) - 1


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One answer of each row of (rows, answers), (rows,) int64."""
    # NaN would make multinomial stop with its own error; the driver finds it and names the layer.
    chances = logits.softmax(-1).nan_to_num(nan=1.0).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)


def one_hot(labels: Tensor, answers: int) -> Tensor:
    """(samples, answers) float."""
    return F.one_hot(labels, answers).float()


def not_with(task: str, what: str) -> NotApplicableError:
    """Why a method cannot judge a model by such a task."""
    return NotApplicableError(f"{task} has no {what}; leave the method out")
