"""A block, an objective and a preset of your own: `pip install ./examples/training-parts`, then

fathom build clicks.csv --preset averages --out build/clicks/bundle   # user_id,item_id,timestamp
"""

import torch
from torch import Tensor, nn

from fathom.training.blocks import Block, Context
from fathom.training.model import ModelSettings
from fathom.training.objectives import ExitLoss, Objective
from fathom.training.presets import TrainConfig, TrainSettings


class AverageBlock(Block):
    """A gated mean of what came before, weighted by how long ago alone: attention that does not look at the items."""

    def __init__(self, width: int, heads: int, dropout: float, *, time_bias: bool) -> None:
        super().__init__(width, heads, 1.0, 0.0, time_bias=time_bias)
        self.norm = nn.LayerNorm(width, bias=False)
        self.gate, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, context: Context, last_only: bool = False) -> Tensor:
        normed = self.norm(hidden)
        weights = self.weights(context, hidden, 0, last_only)
        return self.leave(hidden, weights @ self.split_heads(self.value(normed)), normed, last_only)

    def extend(self, hidden: Tensor, past: Tensor, context: Context, last_only: bool = False) -> tuple[Tensor, Tensor]:
        normed = self.norm(hidden)
        new = self.split_heads(self.value(normed))
        # There are no keys; the engines keep a place for them.
        kept = torch.cat((torch.zeros_like(new), new), dim=1)
        values = torch.cat((past, kept), dim=2).chunk(2, dim=1)[1]
        weights = self.weights(context, hidden, past.shape[2], last_only)
        return self.leave(hidden, weights @ values, normed, last_only), kept

    def weights(self, context: Context, hidden: Tensor, past: int, last_only: bool) -> Tensor:
        """(B, heads, Q, L), each query's weights of sum 1."""
        return torch.softmax(self.bias(context, hidden, past=past, last_only=last_only) + context.mask, dim=-1)

    def leave(self, hidden: Tensor, attended: Tensor, normed: Tensor, last_only: bool) -> Tensor:
        newest = slice(-1, None) if last_only else slice(None)
        mean = attended.transpose(1, 2).flatten(2)
        return hidden[:, newest] + self.dropout(self.out(mean * torch.sigmoid(self.gate(normed[:, newest]))))

    def attention_weights(self, hidden: Tensor, context: Context) -> Tensor:
        return self.weights(context, hidden, 0, False).expand(len(hidden), -1, -1, -1)

    def become_identity(self) -> None:
        nn.init.zeros_(self.out.weight)


class Smoothed(Objective):
    """Cross entropy with a tenth of the weight on all candidates alike: label smoothing (arXiv 1512.00567)."""

    def cross_entropy(self, exit_: ExitLoss) -> Tensor:
        uniform = exit_.log_total - (exit_.users * self.vectors.mean(0)).sum(-1)
        return 0.9 * super().cross_entropy(exit_) + 0.1 * (uniform * self.share.sum(-1)).sum()


PRESET = TrainConfig(model=ModelSettings(block="average"), train=TrainSettings(objective="smoothed"))
