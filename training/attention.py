"""Pointwise SiLU attention for training: a few rows at a time, so that no score leaves the cache.

The plain expression writes every score to memory three times and reads it back in backward. Here backward computes the
scores again (arXiv 2112.05682), keys that lie in the future of a whole block of queries are left out, and queries, keys
and values are read where the projection left them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Scores of one head held at a time on a CPU: 512 KB, a part of what a core's own cache holds; on a GPU 256 MB.
SCORES_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 26}
#: Queries that share their keys: the first of them is offered this many too many, the last none.
QUERIES_AT_ONCE = 64


def silu_attention(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gate u and silu(q k^T + bias) v, both (B, L, width), where u, q, k, v = silu(projected).

    ``projected`` (B, L, 4 width); ``bias`` (heads, L, L) or (B, heads, L, L), far below zero for every later key,
    so that silu leaves nothing of it. Equal to the plain expression, forward and backward.
    """
    gate, attended = _SiluAttention.apply(projected, bias)  # type: ignore[no-untyped-call]
    return gate, attended


class _SiluAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """See ``silu_attention``."""
        activated = F.silu(projected)
        gate, q, k, v = activated.chunk(4, dim=-1)
        attended = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for part in _parts(projected, bias):
            weights = F.silu(part.scores(q, k, bias), inplace=True)
            part.queries(attended).copy_(weights @ part.keys(v))
        ctx.save_for_backward(projected, activated, bias)
        return gate.contiguous(), attended

    @staticmethod
    def backward(ctx: Any, to_gate: Tensor, to_attended: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the projection and the bias."""
        projected, activated, bias = ctx.saved_tensors
        _, q, k, v = activated.chunk(4, dim=-1)
        out, to_bias = torch.zeros_like(projected), torch.zeros_like(bias)
        to_u, to_q, to_k, to_v = out.chunk(4, dim=-1)
        to_u.copy_(to_gate)
        for part in _parts(projected, bias):
            scores = part.scores(q, k, bias)
            above = part.queries(to_attended)
            part.keys(to_v).add_(F.silu(scores).mT @ above)
            to_scores = torch.ops.aten.silu_backward(above @ part.keys(v).mT, scores)
            part.queries(to_q).copy_(to_scores @ part.keys(k))
            part.keys(to_k).add_(to_scores.mT @ part.queries(q))
            if ctx.needs_input_grad[1]:
                part.bias(to_bias).add_(to_scores.sum(0) if bias.ndim == 3 else to_scores)
        return torch.ops.aten.silu_backward(out, projected), to_bias


class _Part:
    """Some queries of some rows in one head, and the keys that any of them may see."""

    def __init__(self, rows: slice, head: int, width: int, first: int, last: int) -> None:
        self.rows, self.head = rows, head
        self.features = slice(head * width, (head + 1) * width)
        self.asking, self.asked = slice(first, last), slice(0, last)

    def queries(self, x: Tensor) -> Tensor:
        return x[self.rows, self.asking, self.features]

    def keys(self, x: Tensor) -> Tensor:
        return x[self.rows, self.asked, self.features]

    def bias(self, bias: Tensor) -> Tensor:
        head = bias[self.head] if bias.ndim == 3 else bias[self.rows, self.head]
        return head[..., self.asking, self.asked]

    def scores(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return (self.queries(q) @ self.keys(k).mT).add_(self.bias(bias))


def _parts(projected: Tensor, bias: Tensor) -> Iterator[_Part]:
    batch, length, width = projected.shape
    heads = bias.shape[-3]
    for first in range(0, length, QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, length)
        rows = max(1, SCORES_AT_ONCE[projected.device.type] // ((last - first) * last))
        for start in range(0, batch, rows):
            for head in range(heads):
                yield _Part(slice(start, start + rows), head, width // (4 * heads), first, last)
