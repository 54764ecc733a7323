"""Trains a smaller model to give what larger ones give."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.errors import ConfigError, DataError, NotApplicableError
from fathom.importance.inputs import Inputs
from fathom.importance.models.calls import without_fast_path
from fathom.importance.models.collation import Collation, Dense
from fathom.importance.models.layerwise import LayerPairs, LayerwiseLoss, states_of
from fathom.importance.models.lora import add_adapters, merge_adapters
from fathom.importance.tasks.interface import Task

#: The least log probability.
NEVER = -1e4


@dataclass(frozen=True)
class Distillation:
    """How a model is healed by its teachers (Hinton et al. 2015, arXiv 1503.02531).

    The loss is ``imitation`` times the divergence of the student's answers from the teachers' mean, both at
    ``temperature``, and otherwise the task's own; a task without probabilities has its own loss alone. ``layerwise``
    times the distance of the layers' states from the teachers' is added, see ``layerwise.LayerwiseLoss``.

    ``tune``: everything, or adapters of rank 8 beside the layers' matrices, and their norms, which are merged at the
    end. ``learning_rate``: highest rate of AdamW, which rises for a tenth of the steps and falls to 0. ``precision``:
    bf16 runs the models in mixed precision. ``checkpointing``: layers run again in the backward pass, for less memory.
    ``progress`` is told the share done and the loss.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    imitation: float = 0.5
    temperature: float = 2.0
    layerwise: float = 0.0
    tune: Literal["everything", "lora"] = "everything"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    seed: int = 0
    progress: Callable[[float, float], None] = lambda _share, _loss: None

    def __post_init__(self) -> None:
        wrong = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "imitation": (0 <= self.imitation <= 1, "from 0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "layerwise": (0 <= self.layerwise < math.inf, "0 or more"),
            "tune": (self.tune in ("everything", "lora"), "everything or lora"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
        }
        for name, (is_right, allowed) in wrong.items():
            if not is_right:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {allowed}")


@dataclass(frozen=True)
class Teacher:
    """A model to learn from. ``pairs``: which of its layers the student's match; None: its answers alone count."""

    model: nn.Module
    pairs: LayerPairs | None = None


@dataclass
class _DistillationLoss:
    """The loss of a student, batch by batch."""

    student: nn.Module
    teachers: Sequence[Teacher]
    task: Task
    how: Distillation
    layer_losses: list[LayerwiseLoss | None] = field(default_factory=list)

    def compare_layers(self, inputs: Inputs, collation: Collation) -> None:
        """Prepare the comparison of layers, from the shapes of a first batch."""
        with torch.no_grad(), self._watched() as states:
            inputs.call(self.student)
            for teacher in self.teachers:
                inputs.call(teacher.model)
            self.layer_losses = [
                None if each.pairs is None else LayerwiseLoss(each.pairs, own, other, collation).train()
                for each, (own, other) in zip(self.teachers, states, strict=True)
            ]

    @property
    def learned(self) -> list[nn.Parameter]:
        """What is trained: the student, and the maps to a wider teacher."""
        parts = (self.student, *(each for each in self.layer_losses if each is not None))
        return [value for part in parts for value in part.parameters() if value.requires_grad]

    def loss(self, inputs: Inputs, labels: Any) -> Tensor:
        """The loss of a batch, a scalar."""
        kind = next(self.student.parameters()).device.type
        mixed = torch.autocast(kind, torch.bfloat16, enabled=self.how.precision == "bf16")
        with self._watched() as states, mixed:
            outputs = [_output(each.model, inputs) for each in self.teachers] if self._needs_teachers else []
            loss = _loss(inputs.call(self.student), outputs, labels, self.task, self.how)
        apart = [
            each(own, other, inputs)
            for each, (own, other) in zip(self.layer_losses, states, strict=False)
            if each is not None
        ]
        return loss + self.how.layerwise * torch.stack(apart).mean() if apart else loss

    @property
    def _needs_teachers(self) -> bool:
        return self.how.imitation > 0 or bool(self.layer_losses)

    @contextmanager
    def _watched(self) -> Iterator[list[tuple[dict[str, Tensor], dict[str, Tensor]]]]:
        """The states of each teacher's pairs, the student's and its own."""
        with ExitStack() as stack:
            stack.enter_context(without_fast_path())
            yield [
                (
                    stack.enter_context(states_of(self.student, each.pairs.student if each.pairs else ())),
                    stack.enter_context(states_of(each.model, each.pairs.teacher if each.pairs else ())),
                )
                for each in self.teachers
            ]


def distil(
    student: nn.Module,
    teachers: Sequence[Teacher],
    task: Task,
    batches: Iterable[tuple[Inputs, Any]],
    how: Distillation,
    *,
    blocks: Sequence[str] = ("",),
    collation: Collation | None = None,
) -> nn.Module:
    """A copy of the student, trained on the batches; it is returned in evaluation mode.

    ``blocks``: the paths of its layers; adapters go into these, and ``checkpointing`` recomputes them.
    ``collation``: which positions are padding. Parameters without a gradient stay as they are, unless none has one; so
    do the means of batch norms. All batches are held in memory. Equal seeds give equal models on one machine. Raises
    DataError without a batch, and where the loss becomes NaN.
    """
    samples = list(batches)
    if not samples:
        raise DataError("there is no batch to heal the smaller model on")
    if not teachers and (how.imitation or how.layerwise):
        raise ConfigError("there is no teacher to imitate")
    healed = copy.deepcopy(student)
    flags = [value.requires_grad for value in healed.parameters()]
    if not any(flags):
        # A model as it is served; one in which some parts are frozen keeps these.
        healed.requires_grad_(True)
    with torch.random.fork_rng(), _evaluating(teacher.model for teacher in teachers):
        torch.manual_seed(how.seed)
        losses = _DistillationLoss(healed, teachers, task, how)
        if how.tune == "lora":
            add_adapters(healed, blocks)
        if how.layerwise:
            losses.compare_layers(task.inputs(healed, *samples[0]), collation or Dense())
        healed.train()
        for part in healed.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                # A few small batches say less of the means than all that it has seen.
                part.eval()
        with _checkpointed(healed, blocks if how.checkpointing else ()):
            _train(losses, samples)
        if how.tune == "lora":
            merge_adapters(healed)
    for value, before in zip(healed.parameters(), flags, strict=True):
        value.requires_grad_(before)
    return healed.eval()


def _train(losses: _DistillationLoss, samples: Sequence[tuple[Inputs, Any]]) -> None:
    how, learned = losses.how, losses.learned
    steps = how.epochs * len(samples)
    optimizer = torch.optim.AdamW(learned, lr=how.learning_rate, weight_decay=0.01)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))
    )
    for step in range(steps):
        if step % len(samples) == 0:
            order = torch.randperm(len(samples)).tolist()
        inputs, labels = samples[order[step % len(samples)]]
        loss = losses.loss(losses.task.inputs(losses.student, inputs, labels), labels)
        if not torch.isfinite(loss):
            raise DataError(f"the loss became NaN or infinite at step {step + 1}; take a lower learning rate")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        how.progress((step + 1) / steps, float(loss.detach()))


@contextmanager
def _checkpointed(model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """The blocks keep nothing for the backward pass but what they are given (Chen et al. 2016, arXiv 1604.06174)."""
    parts = [model.get_submodule(path) for path in blocks]
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


@torch.no_grad()
def _output(teacher: nn.Module, inputs: Inputs) -> Any:
    return inputs.call(teacher)


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Models as they answer; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for model in models for part in model.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _loss(output: Any, teacher_outputs: Sequence[Any], labels: Any, task: Task, how: Distillation) -> Tensor:
    own = task.losses(output, labels).mean()
    if not how.imitation:
        return own
    try:
        student, *teachers = (task.answers(each, labels) for each in (output, *teacher_outputs))
    except NotApplicableError:
        return own
    if any(scores.shape != student.shape for scores in teachers):
        raise ConfigError(
            f"a teacher gives {tuple(teachers[-1].shape)} scores where the model gives {tuple(student.shape)};"
            " it must know the same answers"
        )
    told = _log_probabilities(student, how.temperature)
    given = torch.stack([_log_probabilities(each, how.temperature) for each in teachers]).logsumexp(0) - math.log(
        len(teachers)
    )
    apart = F.kl_div(told, given, reduction="batchmean", log_target=True)
    # Gradients shrink with the square of the temperature.
    return how.imitation * how.temperature**2 * apart + (1 - how.imitation) * own


def _log_probabilities(scores: Tensor, temperature: float) -> Tensor:
    # Answers that cannot be given have a score of minus infinity.
    return (scores / temperature).float().log_softmax(-1).clamp(min=NEVER)
