"""Trains a smaller model to give what a larger one gives."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError, NotApplicableError
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import Task

#: The least log probability.
NEVER = -1e4


@dataclass(frozen=True)
class Distillation:
    """How a model is healed by its teacher (Hinton et al. 2015, arXiv 1503.02531).

    The loss is ``imitation`` times the divergence of the student's answers from the teacher's, both at ``temperature``,
    and otherwise the task's own; a task without probabilities has its own loss alone. ``learning_rate``: highest rate
    of AdamW, which rises for a tenth of the steps and falls to 0. ``progress`` is told the share done and the loss.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    imitation: float = 0.5
    temperature: float = 2.0
    seed: int = 0
    progress: Callable[[float, float], None] = lambda _share, _loss: None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0 or self.temperature <= 0 or not 0 <= self.imitation <= 1:
            raise ConfigError("healing needs epochs from 1, a learning rate and temperature above 0, imitation 0 to 1")


def distil(
    student: nn.Module, teacher: nn.Module, task: Task, batches: Iterable[tuple[Inputs, Any]], how: Distillation
) -> nn.Module:
    """A copy of the student, trained on the batches; it is returned in evaluation mode.

    Parameters without a gradient stay as they are, unless none has one; so do the means of batch norms. All batches are
    held in memory. Equal seeds give equal models on one machine. Raises DataError without a batch, and where the loss
    becomes NaN.
    """
    samples = list(batches)
    if not samples:
        raise DataError("there is no batch to heal the smaller model on")
    healed = copy.deepcopy(student)
    flags = [value.requires_grad for value in healed.parameters()]
    if not any(flags):
        # A model as it is served; one in which some parts are frozen keeps these.
        healed.requires_grad_(True)
    teacher.eval()
    steps = how.epochs * len(samples)
    learned = [value for value in healed.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=how.learning_rate, weight_decay=0.01)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))
    )
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        healed.train()
        for part in healed.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                # A few small batches say less of the means than all that it has seen.
                part.eval()
        for step in range(steps):
            if step % len(samples) == 0:
                order = torch.randperm(len(samples)).tolist()
            inputs, labels = samples[order[step % len(samples)]]
            inputs = task.inputs(teacher, inputs, labels)
            taught = _output(teacher, inputs) if how.imitation else None
            loss = _loss(inputs.call(healed), taught, labels, task, how)
            if not torch.isfinite(loss):
                raise DataError(f"the loss became NaN or infinite at step {step + 1}; take a lower learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            how.progress((step + 1) / steps, float(loss.detach()))
    for value, before in zip(healed.parameters(), flags, strict=True):
        value.requires_grad_(before)
    return healed.eval()


@torch.no_grad()
def _output(teacher: nn.Module, inputs: Inputs) -> Any:
    return inputs.call(teacher)


def _loss(output: Any, taught: Any, labels: Any, task: Task, how: Distillation) -> Tensor:
    own = task.losses(output, labels).mean()
    if not how.imitation:
        return own
    try:
        student, teacher = task.answers(output, labels), task.answers(taught, labels)
    except NotApplicableError:
        return own
    # Answers that cannot be given have a score of minus infinity.
    told, given = ((scores / how.temperature).float().log_softmax(-1).clamp(min=NEVER) for scores in (student, teacher))
    apart = F.kl_div(told, given, reduction="batchmean", log_target=True)
    # Gradients shrink with the square of the temperature.
    return how.imitation * how.temperature**2 * apart + (1 - how.imitation) * own
