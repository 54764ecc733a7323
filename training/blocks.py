"""The two transformer blocks behind one interface, and what every layer of a model shares (Context).

Left padding never changes a history's result: what it gives to later positions is exactly zero, nothing is normalised
by the padded length, and positions enter only as distances between two items.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.training.adapters import rows_of
from fathom.training.attention import silu_attention
from fathom.training.plugins import known, load

GROUP = "fathom.blocks"

#: Added to a masked score. Finite, so that a row of padding stays free of NaN; both softmax and SiLU send it to 0.
MASKED = -1e4
#: Distances below this have a bucket each; beyond it, buckets grow with the logarithm of the distance.
EXACT_DISTANCES = 16
POSITION_BUCKETS = 32


@dataclass(frozen=True)
class Context:
    """What all layers share for one batch of B histories, padded on the left to L positions.

    ``mask`` float (B, 1, 1, L): 0 for a history item, MASKED for padding. ``positions`` int64 (M, M), M >= L: bucket of
    the distance from item i back to item j, or POSITION_BUCKETS where j lies in the future or beyond the span. ``time``
    float (B, heads, L, L): bias by the time between two items, or None. ``of_new``: ``positions`` are those of the new
    positions alone, (N, L), to be looked up as they are.
    """

    mask: Tensor
    positions: Tensor
    time: Tensor | None
    of_new: bool = False


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """``F.dropout`` of x (...,), with a byte of randomness per element on a CPU, not a whole draw of the generator.

    ``share`` is rounded to a multiple of 1/256, and the scale is that of the rounded share.
    """
    dropped = round(share * 256)
    if not training or not dropped:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share, training=True)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (keep * (256 / (256 - dropped)))


def position_buckets(max_distance: int) -> Tensor:
    """Bucket of each distance 0..max_distance-1, int64 (max_distance,): exact when near, logarithmic when far.

    A table rather than arithmetic in the graph: a logarithm that rounds differently elsewhere cannot move a
    distance into another bucket. The layout is T5's (arXiv 1910.10683).
    """
    far = POSITION_BUCKETS - EXACT_DISTANCES
    span = math.log(max(max_distance, 2 * EXACT_DISTANCES) / EXACT_DISTANCES)
    buckets = [
        distance
        if distance < EXACT_DISTANCES
        else min(EXACT_DISTANCES + int(math.log(distance / EXACT_DISTANCES) / span * far + 1e-9), POSITION_BUCKETS - 1)
        for distance in range(max_distance)
    ]
    return torch.tensor(buckets, dtype=torch.int64)


def parts_of(linear: nn.Linear, x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """The parts of a projection without bias, each (..., size).

    In an engine each is a product of its own: to take one product into its parts would copy all of it.
    """
    if torch.onnx.is_in_onnx_export():
        ends = list(accumulate(sizes))
        return tuple(rows_of(linear, x, end - size, end) for size, end in zip(sizes, ends, strict=True))
    return tuple(torch.split(linear(x), sizes, dim=-1))


class PositionBias(nn.Module):
    """A learned score per head and distance bucket; the future and what lies beyond the span are masked."""

    def __init__(self, heads: int, first: float, last: float) -> None:
        super().__init__()
        # Newer items weigh more before anything is learned.
        self.table = nn.Parameter(torch.linspace(first, last, POSITION_BUCKETS).repeat(heads, 1))

    def forward(self, positions: Tensor) -> Tensor:
        """Bias (heads, Q, L) for buckets (Q, L)."""
        table: Tensor = F.pad(self.table, (0, 1), value=MASKED)
        return table[:, positions]


class Block(nn.Module):
    """What both blocks have in common: heads, the position bias and the gain of the shared time bias."""

    def __init__(self, width: int, heads: int, first_bias: float, last_bias: float, *, time_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.positions = PositionBias(heads, first_bias, last_bias)
        self.time_gain = nn.Parameter(torch.ones(heads, 1, 1)) if time_bias else None

    def bias(self, context: Context, hidden: Tensor, *, past: int = 0, last_only: bool) -> Tensor:
        """Score added to every (query, key), (heads, Q, L) or with time (B, heads, Q, L).

        The keys are ``past`` positions and those of ``hidden``; the queries are the latter or the last.
        """
        keys = past + hidden.shape[1]
        queries = 1 if last_only else hidden.shape[1]
        if context.of_new:
            bias: Tensor = self.positions(context.positions[-1:] if last_only else context.positions)
        else:
            # Looked up before it is cut: in an engine, whose positions are those of the longest history, a constant.
            bias = self.positions(context.positions)[:, keys - queries : keys, :keys]
        if self.time_gain is not None and context.time is not None:
            time = context.time[:, :, -1:] if last_only else context.time
            bias = bias + self.time_gain * time
        return bias

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, heads, L, width / heads)."""
        return x.view(*x.shape[:2], self.heads, self.width // self.heads).transpose(1, 2)

    def project(self, linear: nn.Linear, x: Tensor, *, last_only: bool) -> tuple[Tensor, ...]:
        """One fused projection to four parts: two of the queries', (B, Q, width), and two of the keys', (B, L, width).

        With ``last_only`` those of the queries are computed for the last position.
        """
        if not last_only:
            return parts_of(linear, x, 4 * [self.width])
        asked = (x[:, -1:], x[:, -1:], x, x)
        width = self.width
        return tuple(rows_of(linear, each, part * width, (part + 1) * width) for part, each in enumerate(asked))

    def extend(self, hidden: Tensor, past: Tensor, context: Context, last_only: bool = False) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The block's output at N new positions, whose P predecessors it has seen, and what it must keep of them.

        ``hidden`` (B, N, width); ``past`` (B, 2 heads, P, width / heads): keys, then values. In ``context``, ``mask``
        has P + N keys, ``time`` N queries and P + N keys. Returns (B, N, width), with ``last_only`` (B, 1, width),
        and (B, 2 heads, N, width / heads), to be put after ``past``. A block looks back over the span only, so nothing
        older is needed.
        """
        raise TypeError("Block is abstract")

    def split_new(self, projected: Tensor, last_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of N new positions, (B, N, 4 width), to what ``extend`` needs of them.

        The gate (B, Q, width), queries (B, heads, Q, size), and keys, then values (B, 2 heads, N, size).
        """
        gate, qkv = torch.split(projected, [self.width, 3 * self.width], dim=-1)
        heads = qkv.view(*qkv.shape[:2], 3 * self.heads, self.width // self.heads).transpose(1, 2)
        q, new = torch.split(heads, [self.heads, 2 * self.heads], dim=1)
        return (gate[:, -1:], q[:, :, -1:], new) if last_only else (gate, q, new)

    def attention_weights(self, hidden: Tensor, context: Context) -> Tensor:  # noqa: ARG002
        """What every query takes from every key, (B, heads, L, L), for the layer's input (B, L, width)."""
        raise TypeError("Block is abstract")

    def become_identity(self) -> None:
        """Zero the output projections, so that the block passes its input on unchanged until it has learned."""
        raise TypeError("Block is abstract")


class HstuBlock(Block):
    """Pointwise SiLU attention with a gate (HSTU, arXiv 2402.17152, equations 1 to 3).

    The attention output is normalised by its own LayerNorm, so the sum over a history needs no division by its
    length. Nothing has a bias, so padding, which comes in as zero, is zero in every layer and needs no mask.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, time_bias: bool) -> None:
        super().__init__(width, heads, 1.0, 0.1, time_bias=time_bias)
        self.norm = nn.LayerNorm(width, bias=False)
        self.uqkv = nn.Linear(width, 4 * width, bias=False)
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = dropout
        nn.init.xavier_normal_(self.uqkv.weight)
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, hidden: Tensor, context: Context, last_only: bool = False) -> Tensor:
        """(B, L, width) -> (B, L, width), or (B, 1, width) for the last position only."""
        bias = self.bias(context, hidden, last_only=last_only)
        if self.training and not last_only:
            u, attended = silu_attention(self.uqkv(self.norm(hidden)), bias)
        else:
            u, q, k, v = map(F.silu, self.project(self.uqkv, self.norm(hidden), last_only=last_only))
            weights = self._weights(q, k, bias)
            attended = (weights @ self.split_heads(v)).transpose(1, 2).flatten(2)
        return self._leave(hidden[:, -1:] if last_only else hidden, attended, u)

    def extend(self, hidden: Tensor, past: Tensor, context: Context, last_only: bool = False) -> tuple[Tensor, Tensor]:
        u, q, new = self.split_new(F.silu(self.uqkv(self.norm(hidden))), last_only)
        keys, values = torch.cat((past, new), dim=2).chunk(2, dim=1)
        bias = self.bias(context, hidden, past=past.shape[2], last_only=last_only)
        scores = q @ keys.transpose(-1, -2) + bias
        attended = (F.silu(scores) @ values).transpose(1, 2).flatten(2)
        return self._leave(hidden[:, -1:] if last_only else hidden, attended, u), new

    def _leave(self, hidden: Tensor, attended: Tensor, u: Tensor) -> Tensor:
        gated = dropout(self.attention_norm(attended) * u, self.dropout, self.training)
        out: Tensor = hidden + self.out(gated)
        return out

    def attention_weights(self, hidden: Tensor, context: Context) -> Tensor:
        _, q, k, _ = map(F.silu, self.project(self.uqkv, self.norm(hidden), last_only=False))
        return self._weights(q, k, self.bias(context, hidden, last_only=False))

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return F.silu(self.split_heads(q) @ self.split_heads(k).transpose(-1, -2) + bias)

    def become_identity(self) -> None:
        nn.init.zeros_(self.out.weight)


class GatedBlock(Block):
    """Pre-norm softmax attention and SwiGLU, each behind a sigmoid-gated residual (LiGR, arXiv 2502.03417)."""

    def __init__(self, width: int, heads: int, dropout: float, *, time_bias: bool) -> None:
        super().__init__(width, heads, 1.0, 0.0, time_bias=time_bias)
        self.norm = nn.LayerNorm(width, bias=False)
        self.gqkv = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.scale = (width // heads) ** -0.5
        self.ffn_norm = nn.LayerNorm(width, bias=False)
        self.ffn_in = nn.Linear(width, 5 * width, bias=False)
        self.ffn_out = nn.Linear(2 * width, width, bias=False)
        self.dropout = dropout
        for linear in (self.gqkv, self.out, self.ffn_in, self.ffn_out):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, hidden: Tensor, context: Context, last_only: bool = False) -> Tensor:
        """(B, L, width) -> (B, L, width), or (B, 1, width) for the last position only."""
        gate, q, k, v = self.project(self.gqkv, self.norm(hidden), last_only=last_only)
        attended = self._weights(q, k, context, hidden, last_only=last_only) @ self.split_heads(v)
        return self._leave(hidden[:, -1:] if last_only else hidden, attended, gate)

    def extend(self, hidden: Tensor, past: Tensor, context: Context, last_only: bool = False) -> tuple[Tensor, Tensor]:
        gate, q, new = self.split_new(self.gqkv(self.norm(hidden)), last_only)
        keys, values = torch.cat((past, new), dim=2).chunk(2, dim=1)
        bias = self.bias(context, hidden, past=past.shape[2], last_only=last_only)
        weights = torch.softmax((q * self.scale) @ keys.transpose(-1, -2) + bias + context.mask, dim=-1)
        return self._leave(hidden[:, -1:] if last_only else hidden, weights @ values, gate), new

    def _leave(self, hidden: Tensor, attended: Tensor, gate: Tensor) -> Tensor:
        attended = dropout(self.out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)
        hidden = hidden + torch.sigmoid(gate) * attended
        gate, a, b = parts_of(self.ffn_in, self.ffn_norm(hidden), [self.width, 2 * self.width, 2 * self.width])
        fed = dropout(self.ffn_out(F.silu(a) * b), self.dropout, self.training)
        return hidden + torch.sigmoid(gate) * fed

    def attention_weights(self, hidden: Tensor, context: Context) -> Tensor:
        _, q, k, _ = self.project(self.gqkv, self.norm(hidden), last_only=False)
        return self._weights(q, k, context, hidden, last_only=False)

    def _weights(self, q: Tensor, k: Tensor, context: Context, hidden: Tensor, *, last_only: bool) -> Tensor:
        # Not scaled_dot_product_attention: its fused kernels give no gradient to a learned bias.
        scores = self.split_heads(q * self.scale) @ self.split_heads(k).transpose(-1, -2)
        return torch.softmax(scores + self.bias(context, hidden, last_only=last_only) + context.mask, dim=-1)

    def become_identity(self) -> None:
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.ffn_out.weight)


BLOCKS: dict[str, type[Block]] = {"hstu": HstuBlock, "gated": GatedBlock}


def block_names() -> tuple[str, ...]:
    """The kinds of blocks there are: ours, and those of installed packages (entry points ``fathom.blocks``)."""
    return known(GROUP, BLOCKS)


def make_block(kind: str, width: int, heads: int, dropout: float, *, time_bias: bool) -> Block:
    """A fresh block of the given kind; raises ConfigError for one that is not there or is no Block."""
    made: Callable[..., Block] = BLOCKS[kind] if kind in BLOCKS else load(GROUP, kind, "block", block_names(), _checked)
    return made(width, heads, dropout, time_bias=time_bias)


def _checked(found: Any) -> type[Block]:
    if not (isinstance(found, type) and issubclass(found, Block)):
        raise ValueError("is no subclass of fathom.training.blocks.Block")
    return found


class TimeBias(nn.Module):
    """A score per head for the time between two items, shared by all layers (each scales it by its own gain).

    Buckets are powers of two of the seconds between them; between two buckets the score is interpolated, so it
    is continuous in time and no rounding can make an exported engine disagree. Where either time is missing (0),
    the score is that of the "unknown" bucket.
    """

    #: 2**29 seconds are 17 years; anything longer counts as that.
    BUCKETS = 30

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, self.BUCKETS + 2))

    def forward(self, timestamps: Tensor, asking: Tensor | None = None) -> Tensor:
        """Bias (B, heads, Q, L) from int64 seconds (B, L) of the keys, and (B, Q) of the queries if they are others."""
        asking = timestamps if asking is None else asking
        apart = (asking[:, :, None] - timestamps[:, None, :]).clamp(min=0).to(self.table.dtype)
        exponent = torch.log2(apart + 1).clamp(max=self.BUCKETS - 1)
        lower = exponent.floor()
        unknown = ~((asking != 0)[:, :, None] & (timestamps != 0)[:, None, :])
        index = lower.long().masked_fill(unknown, self.BUCKETS + 1)
        share = (exponent - lower).masked_fill(unknown, 0.0)
        steps = F.pad(self.table[:, 1:] - self.table[:, :-1], (0, 1))
        return (self.table[:, index] + share * steps[:, index]).transpose(0, 1)
