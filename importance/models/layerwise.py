"""Layer-wise distillation: layers of a student learn to leave the states that a teacher's layers leave.

FitNets (Romero et al. 2015, arXiv 1412.6550) with a weight for each layer; where a teacher is wider, a linear map that
is learned and thrown away brings the student's state to its width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.models.calls import hidden_of
from fathom.importance.models.collation import Collation


@dataclass(frozen=True)
class LayerPairs:
    """Which layer of a student goes by which of a teacher.

    ``student``, ``teacher``: paths, a pair in each place. ``weights``: how much each counts, 1 in all.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    weights: tuple[float, ...]


@contextmanager
def states_of(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths leave in the runs inside, the latest of each."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # What comes after may work in place.
            found[path] = hidden_of(output).clone()

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(keep(path)) for path in dict.fromkeys(paths)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class LayerwiseLoss(nn.Module):
    """The weighted mean over pairs of the squared distance of states, relative to the variance of the teacher's.

    ``student``, ``teacher``: the states on a first batch, by path. Raises ConfigError where more than the width
    differs.
    """

    def __init__(
        self, pairs: LayerPairs, student: dict[str, Tensor], teacher: dict[str, Tensor], collation: Collation
    ) -> None:
        super().__init__()
        self._pairs, self._collation = pairs, collation
        self.maps = nn.ModuleList(
            _between(student[own], teacher[other], own, other)
            for own, other in zip(pairs.student, pairs.teacher, strict=True)
        )

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor], inputs: Inputs) -> Tensor:
        """A scalar; padding does not count."""
        pairs = zip(self._pairs.student, self._pairs.teacher, self.maps, strict=True)
        apart = torch.stack([self._apart(to(student[own].float()), teacher[other], inputs) for own, other, to in pairs])
        return (apart * apart.new_tensor(self._pairs.weights)).sum()

    def _apart(self, own: Tensor, other: Tensor, inputs: Inputs) -> Tensor:
        mask = self._collation.mask(inputs, other.shape[1]) if other.dim() == 3 else None
        if mask is not None and mask.shape == other.shape[:2]:
            own, other = own[mask], other[mask]
        other = other.float()
        return ((own - other) ** 2).mean() / other.var(correction=0).clamp(min=torch.finfo(other.dtype).tiny)


def _between(own: Tensor, other: Tensor, path: str, teacher: str) -> nn.Module:
    if own.shape == other.shape:
        return nn.Identity()
    if own.dim() not in (2, 3) or own.shape[:-1] != other.shape[:-1]:
        raise ConfigError(
            f"{path} leaves a state of shape {tuple(own.shape)} and the teacher's {teacher} one of"
            f" {tuple(other.shape)}; layer-wise distillation needs states that differ in their width alone"
        )
    return nn.Linear(own.shape[-1], other.shape[-1], device=own.device)
