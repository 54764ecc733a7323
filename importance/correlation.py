"""CKA: how much of the similarity between samples a layer rearranges; and the jackknife over folds of samples."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.importance.interface import Batch, LayeredModel, hidden_states

FOLDS = 10
FEWEST_SAMPLES = 5
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
        with torch.no_grad():
            states = torch.cat([_newest_states(model, batch) for batch in batches])
        if len(states) < FEWEST_SAMPLES:
            raise DataError(f"the cka method needs at least {FEWEST_SAMPLES} samples, not {len(states)}")
        fold = folds_of(0, len(states))
        without = [_change(states[fold != left_out], model.layers) for left_out in range(int(fold.max()) + 1)]
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


def newest_positions(real: Tensor) -> Tensor:
    """The last real position of each sample, int64 (samples,), for ``real`` bool (samples, positions)."""
    return (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)


def folds_of(first: int, samples: int) -> Tensor:
    """The fold of each of the next samples, int64 (samples,), when ``first`` samples came before them.

    Every tenth sample belongs together, because batches are often sorted.
    """
    return torch.arange(first, first + samples) % FOLDS


def pseudo_values(whole: Tensor, without: Tensor) -> Tensor:
    """The jackknife pseudo-values (folds, layers) of an estimate (layers,), given it without each fold (folds, layers).

    Their mean is the estimate less its bias to first order; their spread is the estimate's uncertainty.
    """
    return len(without) * whole - (len(without) - 1) * without


def _newest_states(model: LayeredModel, batch: Batch) -> Tensor:
    """Each sample's state at its newest position, at every boundary, (samples, boundaries, width) float64."""
    newest = newest_positions(model.real_positions(batch))
    rows = torch.arange(len(newest), device=newest.device)
    return torch.stack([state[rows, newest] for state in hidden_states(model, batch)], dim=1).double()


def _change(states: Tensor, layers: tuple[int, ...]) -> Tensor:
    """1 - CKA between the input and the output of each layer, (layers,)."""
    change = states.new_zeros(len(layers))
    own = [debiased_hsic(state, state) for state in states.unbind(1)]
    for place, layer in enumerate(layers):
        across = debiased_hsic(states[:, place], states[:, place + 1])
        change[layer] = 1 - across / (own[place] * own[place + 1]).sqrt()
    return change
