"""Hidden states of any shape as (samples, positions, width), and back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fathom.errors import NotApplicableError

Form = Literal["vectors", "sequence", "time first", "channels first", "channels last", "nodes"]


@dataclass(frozen=True)
class Layout:
    """How a hidden state of some shape is laid out.

    ``node_of``: of a graph's nodes, the sample of each, int64 (nodes,), ascending. ``flipped``: the positions are given
    in reverse, because the model reads its answer from the first: methods look at the last real one.
    """

    form: Form
    shape: torch.Size
    node_of: Tensor | None = None
    flipped: bool = False

    def to_states(self, hidden: Tensor) -> Tensor:
        """(samples, positions, width)."""
        match self.form:
            case "vectors":
                states = hidden[:, None]
            case "sequence":
                states = hidden
            case "time first":
                states = hidden.transpose(0, 1)
            case "channels first":
                states = hidden.flatten(2).transpose(1, 2)
            case "channels last":
                states = hidden.flatten(1, -2)
            case "nodes":
                rows, columns = self._nodes()
                states = hidden.new_zeros(int(rows.max()) + 1, int(columns.max()) + 1, hidden.shape[1])
                states = states.index_put((rows, columns), hidden)
        return states.flip(1) if self.flipped else states

    def to_hidden(self, states: Tensor) -> Tensor:
        """The model's own shape."""
        if self.flipped:
            states = states.flip(1)
        match self.form:
            case "vectors":
                return states[:, 0]
            case "sequence":
                return states
            case "time first":
                return states.transpose(0, 1)
            case "channels first":
                return states.transpose(1, 2).reshape(len(states), *self.shape[1:])
            case "channels last":
                return states.reshape(len(states), *self.shape[1:])
            case "nodes":
                rows, columns = self._nodes()
                return states[rows, columns]

    def real(self, samples: int, device: torch.device) -> Tensor:
        """The positions that are there, bool (samples, positions), without knowing of padding."""
        if self.form == "nodes":
            rows, columns = self._nodes()
            there = torch.zeros(samples, int(columns.max()) + 1, dtype=torch.bool, device=device)
            there[rows, columns] = True
        else:
            shape = self.to_states(torch.empty(self.shape, device="meta")).shape
            there = torch.ones(shape[:2], dtype=torch.bool, device=device)
        return there.flip(1) if self.flipped else there

    @property
    def size(self) -> tuple[int, int]:
        """Positions and width of a state."""
        if self.form == "nodes":
            return int(self._nodes()[1].max()) + 1, self.shape[1]
        states = self.to_states(torch.empty(self.shape, device="meta"))
        return states.shape[1], states.shape[2]

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """The sample of each node, and which of its nodes it is."""
        assert self.node_of is not None
        counts = torch.bincount(self.node_of)
        starts = counts.cumsum(0) - counts
        return self.node_of, torch.arange(len(self.node_of), device=self.node_of.device) - starts[self.node_of]


def layout_of(shape: torch.Size, samples: int, block: nn.Module, node_of: Tensor | None = None) -> Layout:
    """The layout of a block's hidden states; raises NotApplicableError where it cannot be told."""
    if node_of is not None and len(shape) == 2 and shape[0] == len(node_of):
        return Layout("nodes", shape, node_of)
    if len(shape) == 2 and shape[0] == samples:
        return Layout("vectors", shape)
    time_first = any(getattr(part, "batch_first", None) is False for part in block.modules())
    if len(shape) == 3 and shape[1] == samples and (shape[0] != samples or time_first):
        return Layout("time first", shape)
    if len(shape) >= 3 and shape[0] == samples:
        if len(shape) - 2 == _dimensions(block):
            return Layout("channels first", shape)
        return Layout("sequence" if len(shape) == 3 else "channels last", shape)
    raise NotApplicableError(
        f"a layer's hidden state has shape {tuple(shape)}, in which {samples} samples cannot be told from each other"
    )


_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def _dimensions(block: nn.Module) -> int:
    """Of the convolution or batch norm that a block begins with; 0 if it begins with something else."""
    leaves = (part for part in block.modules() if not any(part.children()))
    first = next((part for part in leaves if next(part.parameters(), None) is not None), None)
    return next((n for kind, n in _CONVOLUTIONS.items() if isinstance(first, kind)), 0)
