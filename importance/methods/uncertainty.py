"""Uncertainty: how much of the model's doubt about the answer is doubt about whether a layer runs."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel, run_layers

DRAWS = 8
"""Sub-networks; even, because each is drawn together with its complement."""


class Uncertainty:
    """The epistemic uncertainty of the prediction that a layer's presence causes, when layers run by toss of a coin.

    Formula     E_x E_m [H((p + q) / 2) - (H(p) + H(q)) / 2], where p is the prediction of a random sub-network m with
                the layer and q without it: total entropy less the aleatoric part, which stays when one knows whether
                the layer runs. It is the mutual information between the layer's coin and the answer given the other
                coins (a Jensen-Shannon divergence), 0 to log 2. The other layers run with probability 1/2, where
                shortened models live. Given the others and not averaged over them: with few draws, an average would
                differ between the two groups of sub-networks by chance alone, even for a layer that does nothing.
    Reference   Depeweg et al. 2018, arXiv 1710.07283 (epistemic and aleatoric parts); Gal and Ghahramani 2016,
                arXiv 1506.02142 (sub-networks as draws from a posterior)
    Cost        8 sub-networks, each with every layer switched once: 2 L + 4 forward passes. All samples meet the same
                sub-networks, each drawn together with its complement, so that every layer runs in half of them.
    Cannot see  whether the answer gets better or worse; the draw of sub-networks is not in the interval, which is over
                samples; the whole model, of which a sub-network has half.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per sample: the mean divergence between predicting with and without each layer, in nats (samples, layers)."""
        subnets = _subnets(len(model.layers), generator)
        with torch.no_grad():
            return torch.cat(
                [torch.stack([self._batch(model, batch, kept) for kept in subnets]).mean(0) for batch in batches]
            )

    def _batch(self, model: LayeredModel, batch: Batch, kept: Collection[int]) -> Tensor:
        states = [model.embed(batch)]
        for layer in model.layers:
            states.append(run_layers(model, batch, states[-1], {layer} & set(kept)))
        given = model.log_probabilities(batch, states[-1]).exp()
        divergence = given.new_zeros(len(given), len(model.layers))
        for place, layer in enumerate(model.layers):
            later = [other for other in model.layers[place + 1 :] if other in kept]
            switched = run_layers(model, batch, states[place], later if layer in kept else [layer, *later])
            divergence[:, layer] = jensen_shannon(given, model.log_probabilities(batch, switched).exp())
        return divergence


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of distributions (..., labels) in nats, (...,); 0 to log 2."""
    middle = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny)
    # Ratios and not a difference of entropies, which would drown a small divergence in rounding.
    divergence: Tensor = (torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)).sum(-1) / 2
    return divergence


def _subnets(layers: int, generator: torch.Generator) -> list[frozenset[int]]:
    """The layers that run in each sub-network, every second one the complement of the one before."""
    heads = torch.rand(DRAWS // 2, layers, generator=generator) < 0.5
    return [frozenset(coins.nonzero().flatten().tolist()) for pair in heads for coins in (pair, ~pair)]
