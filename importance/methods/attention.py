"""Attention: how far each layer moves what the answer rests on."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.errors import NotApplicableError
from fathom.importance.interface import Batch, LayeredModel, hidden_states, newest_positions


class Attention:
    """How much of the newest position's attention rollout lies on other inputs when the layer's attention is left out.

    Formula     E_x [1/2 ||r - r_without||_1], the share of the rollout that the layer moves; 0 to 1. The rollout is
                r = e A_L ... A_1, where e is the newest real position, A = (mean over heads of the attention + I) / 2,
                the I being the residual connection; r_without has no factor for the layer. Not the entropy of the
                attention: a layer of uniform attention moves much and a layer that looks at itself moves nothing,
                while entropy would put them the other way round.
    Reference   Abnar and Zuidema 2020, arXiv 2005.00928 (attention rollout)
    Cost        one forward pass and the attention weights of every layer once more
    Cannot see  values, gates and feed-forward parts: what is attended to may hardly be written; the rollout takes half
                of every output to be attention and all heads to be equal. Signs of attention weights, the loss, and a
                model whose answer is read from other positions than the newest.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the share of the rollout that each layer moves, (samples, layers).

        Raises NotApplicableError when a layer has no attention weights.
        """
        with torch.no_grad():
            return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        real = model.real_positions(batch)
        states = hidden_states(model, batch)
        steps = [_step(model, batch, layer, states[place], real) for place, layer in enumerate(model.layers)]
        # Entry k: how much of the newest position's output rests on each position above step k, from the top.
        above = [torch.nn.functional.one_hot(newest_positions(real), real.shape[1]).to(states[0].dtype)[:, None]]
        for step in reversed(steps):
            above.append(above[-1] @ step)
        above.reverse()
        moved = states[0].new_zeros(len(real), len(model.layers))
        for place, layer in enumerate(model.layers):
            without = above[place + 1]
            for step in reversed(steps[:place]):
                without = without @ step
            moved[:, layer] = (above[0] - without).abs().sum((1, 2)) / 2
        return moved


def _step(model: LayeredModel, batch: Batch, layer: int, hidden: Tensor, real: Tensor) -> Tensor:
    """One layer's factor of the rollout, (samples, positions, positions); 0 from and to padding but for itself."""
    attention = model.attention(batch, layer, hidden)
    if attention is None:
        raise NotApplicableError(f"the attention method needs a model with attention weights; layer {layer} has none")
    weights = torch.where(real[:, :, None] & real[:, None, :], attention.mean(1), 0.0)
    return (weights + torch.eye(real.shape[1], dtype=weights.dtype, device=weights.device)) / 2
