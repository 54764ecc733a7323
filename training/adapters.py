"""Products with a low-rank adapter beside their weight (LoRA, arXiv 2106.09685), kept apart from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptedLinear(nn.Linear):
    """A linear layer that adds ``(x @ lora_a) @ lora_b``; ``lora_a`` is (in, rank), ``lora_b`` (rank, out)."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.lora_a = nn.Parameter(torch.zeros(inputs, rank))
        self.lora_b = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + x @ self.lora_a @ self.lora_b

    def merged(self) -> Tensor:
        """The weight, (out, in), of a plain layer that computes the same."""
        return self.weight + (self.lora_a @ self.lora_b).T


def rows_of(linear: nn.Linear, x: Tensor, start: int, end: int) -> Tensor:
    """The outputs from ``start`` to before ``end`` of a linear layer without bias, (..., end - start)."""
    rows = F.linear(x, linear.weight[start:end])
    return rows + x @ linear.lora_a @ linear.lora_b[:, start:end] if isinstance(linear, AdaptedLinear) else rows


def adapt(module: nn.Module, rank: int) -> None:
    """Replace every linear layer below a module by one with an adapter of this rank that changes nothing."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(
                    parent,
                    name,
                    AdaptedLinear(child.in_features, child.out_features, rank, bias=child.bias is not None),
                )
