"""CKA: how much of the similarity between samples a layer rearranges."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.importance.interface import Batch, LayeredModel, newest_states
from fathom.importance.jackknife import pseudo_values, without_each_fold

FEWEST_SAMPLES = 5
SAME = 1e-6
"""An unbiased HSIC needs 4 samples, also when a fold is left out."""


class CKA:
    """How differently a layer's input and output place the samples relative to each other.

    Formula     1 - CKA(X_in, X_out), linear and debiased: HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), with the unbiased
                estimator of HSIC; about 0 to 1. A row of X is a sample's state at its newest real position: a state
                that the layer really has, in a sequence model the one that answers are read from. A mean over
                positions is no state of the model, and for long histories much the same for all samples.
    Reference   Kornblith et al. 2019, arXiv 1905.00414; Song et al. 2012 (unbiased HSIC); Nguyen et al. 2021,
                arXiv 2010.15327 (debiased CKA)
    Cost        one forward pass. Rows are jackknife pseudo-values over 10 folds of samples.
    Cannot see  the loss; rotations and rescaling of all samples alike; what is done at older positions only; small
                directions, for those of large variance dominate.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per fold: the pseudo-values of 1 - CKA of each layer, (folds, layers) float64.

        Raises DataError for fewer than 5 samples.
        """
        states = torch.cat([newest_states(model, batch) for batch in batches])
        if len(states) < FEWEST_SAMPLES:
            raise DataError(f"the cka method needs at least {FEWEST_SAMPLES} samples, not {len(states)}")
        without = [_change(states[kept], model.layers) for kept in without_each_fold(len(states))]
        return pseudo_values(_change(states, model.layers), torch.stack(without))


def debiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of HSIC with linear kernels, a scalar, for features x and y (samples, width).

    At least 4 samples. Equal to the sums over the n x n kernel matrices without their diagonals, in O(n width^2).
    """
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    own_x, own_y = x.square().sum(1), y.square().sum(1)
    # Centred features: every row of a kernel matrix sums to 0, and without its diagonal to minus the diagonal.
    products = (x.T @ y).square().sum() - own_x @ own_y
    totals = own_x.sum() * own_y.sum() / ((n - 1) * (n - 2))
    return (products + totals - 2 / (n - 2) * (own_x @ own_y)) / (n * (n - 3))


def _are_alike(states: Tensor) -> bool:
    """Whether the samples have one and the same state (samples, width), but for rounding."""
    return bool((states - states.mean(0)).norm() <= SAME * states.norm())


def _change(states: Tensor, layers: tuple[int, ...]) -> Tensor:
    """1 - CKA between the input and the output of each layer, (layers,)."""
    change = states.new_zeros(len(layers))
    own = [debiased_hsic(state, state) for state in states.unbind(1)]
    for place, layer in enumerate(layers):
        across = debiased_hsic(states[:, place], states[:, place + 1])
        # Where all samples begin alike, as with one and the same first token, nothing of their order is kept.
        alike = _are_alike(states[:, place]) or _are_alike(states[:, place + 1])
        change[layer] = 1 if alike else 1 - across / (own[place] * own[place + 1]).sqrt()
    return change
