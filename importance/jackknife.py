"""The jackknife over folds of samples, for a method whose estimate is not a mean over samples."""

import torch
from torch import Tensor

FOLDS = 10


def folds_of(first: int, samples: int) -> Tensor:
    """The fold of each of the next samples, int64 (samples,), when ``first`` samples came before them.

    Every tenth sample belongs together, because batches are often sorted.
    """
    return torch.arange(first, first + samples) % FOLDS


def without_each_fold(samples: int) -> Tensor:
    """Which samples stay when each fold is left out in turn, bool (folds, samples); few samples have fewer folds."""
    return folds_of(0, samples) != torch.arange(min(FOLDS, samples))[:, None]


def pseudo_values(whole: Tensor, without: Tensor) -> Tensor:
    """The jackknife pseudo-values (folds, layers) of an estimate (layers,), given it without each fold (folds, layers).

    Their mean is the estimate less its bias to first order; their spread is the estimate's uncertainty.
    """
    return len(without) * whole - (len(without) - 1) * without


def centred_pseudo_values(whole: Tensor, without: Tensor) -> Tensor:
    """Jackknife pseudo-values shifted so that their mean is the whole estimate, (folds, layers); see pseudo_values.

    For an estimate that jumps: the jackknife's correction of the bias, folds times a difference, is then mostly noise.
    """
    pseudo = pseudo_values(whole, without)
    return pseudo - pseudo.mean(0) + whole
