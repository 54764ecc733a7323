"""What is studied: a model with its data, made ready in minutes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.importance.inputs import Inputs
from fathom.importance.models.distillation import Distillation, distil
from fathom.importance.tasks.interface import Task

Batch = dict[str, Any]


@dataclass(frozen=True)
class Ready:
    """A model and its data. ``heal``: to learn from; ``rank``: to measure layers on; ``test``: seen by nothing else.

    ``stack``: the paths of its layers, where they are not those that would be taken. ``task``: with its own settings.
    """

    model: nn.Module
    heal: Sequence[Batch]
    rank: Sequence[Batch]
    test: Sequence[Batch]
    task: Task | None = None
    stack: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """A model to study. ``counted``: blocks of the stack as a person counts them; ``metric``: of its task.

    ``orders``: how many random orders of layers are measured where not all subsets can be. ``draws``: how many random
    choices of layers are healed beside ours. ``steps``: batches that every smaller model learns from.
    ``compressed``: whether it is made smaller, or ranked alone. ``answers``: the module that gives the answers, where
    Torch-Pruning can make the others narrower, to compare with. ``modalities``: the arguments of the model that hold
    each, to be ablated.
    """

    task: str
    modality: str
    counted: int
    metric: str
    make: Callable[[], Ready]
    healing: Distillation = field(default_factory=Distillation)
    orders: int = 0
    draws: int = 2
    steps: int = 100
    compressed: bool = True
    answers: str = ""
    modalities: Mapping[str, Sequence[str]] = field(default_factory=dict)


def batches(named: Mapping[str, Tensor], size: int, rows: Iterable[int]) -> list[Batch]:
    """Rows of tensors by name, so many to a batch."""
    chosen = torch.as_tensor(list(rows))
    return [{name: value[part] for name, value in named.items()} for part in torch.split(chosen, size)]


def parts(named: Mapping[str, Tensor], size: int, *counts: int) -> list[list[Batch]]:
    """The first rows, those after them, and so on, in batches."""
    ends = np.cumsum([0, *counts])
    return [batches(named, size, range(*pair)) for pair in pairwise(ends)]


def fit(model: nn.Module, task: Task, given: Sequence[Batch], *, epochs: int, rate: float) -> nn.Module:
    """The model, trained on labelled batches by its task's loss alone."""
    pairs = [(Inputs((), {k: v for k, v in batch.items() if k != "labels"}), batch["labels"]) for batch in given]
    how = Distillation(epochs=epochs, learning_rate=rate, imitation=0.0)
    return distil(model, (), task, pairs, how)
