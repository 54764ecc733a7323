"""What a depth is expected to lose against the deepest, learned from requests whose answers are known.

A ridge regression on each feature and its square: small enough to evaluate in microseconds, and stiff enough to say
nothing where there is nothing to say. The strength of the penalty is chosen by cross-validation, and one of the
choices is a constant.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from fathom.selector.schema import STRICT, Finite, Floats

FOLDS = 5
#: Relative to the number of requests; infinity is the constant.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, np.inf)
#: Standardised features end here: what lies further out is as far as anything that was seen.
FARTHEST = 3.0


@dataclass(frozen=True, config=STRICT)
class LossModel:
    """Expected loss of each target from a row of features; NaN is an unknown feature and counts as its mean.

    ``centre`` and ``scale``: of each feature. ``intercept``: of each target. ``weights``: per target, of every
    standardised feature and then of every square.
    """

    centre: tuple[Finite, ...]
    scale: tuple[Finite, ...]
    intercept: tuple[Finite, ...]
    weights: tuple[tuple[Finite, ...], ...]

    def __post_init__(self) -> None:
        features, targets = len(self.centre), len(self.intercept)
        if len(self.scale) != features or len(self.weights) != targets:
            raise ValueError("centre, scale, intercept and weights do not fit together")
        if any(len(row) != 2 * features for row in self.weights) or any(scale <= 0 for scale in self.scale):
            raise ValueError("weights do not fit the features, or a scale is not positive")

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        return np.array(self.centre), 1 / np.array(self.scale), np.array(self.intercept), np.array(self.weights).T

    def predict(self, rows: Sequence[float] | Floats) -> Floats:
        """Losses (targets,) of one row (features,), or (n, targets) of rows (n, features)."""
        centre, per_scale, intercept, weights = self._arrays
        design = _design(np.array(rows), centre, per_scale)
        losses: Floats = design.dot(weights)
        losses += intercept
        return losses

    @classmethod
    def fit(cls, rows: Floats, losses: Floats) -> "LossModel":
        """Learn from features (n, features) and losses (n, targets), n >= FOLDS."""
        centre, scale = _moments(rows)
        design = _design(rows.copy(), centre, 1 / scale)
        intercept, weights = _ridge(design, losses, _best_strength(design, losses))
        return cls(_floats(centre), _floats(scale), _floats(intercept), tuple(map(_floats, weights.T)))


def cross_fitted(rows: Floats, losses: Floats) -> Floats:
    """Losses (n, targets) that models predict for requests (n, features) which they have not learned from."""
    predicted = np.empty_like(losses)
    for rest, fold in _folds(len(rows)):
        predicted[fold] = LossModel.fit(rows[rest], losses[rest]).predict(rows[fold])
    return predicted


def _design(rows: Floats, centre: Floats, per_scale: Floats) -> Floats:
    """Standardised features and their squares; overwrites ``rows``."""
    rows -= centre
    rows *= per_scale
    rows[rows != rows] = 0.0
    np.minimum(rows, FARTHEST, out=rows)
    np.maximum(rows, -FARTHEST, out=rows)
    return np.concatenate((rows, rows * rows), axis=-1)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(values.tolist())


def _moments(rows: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(0), 1)
    centre = np.where(known, rows, 0.0).sum(0) / count
    spread = np.sqrt((np.where(known, rows - centre, 0.0) ** 2).sum(0) / count)
    # A feature that never changes is its own mean, whatever it is divided by.
    return centre, np.where(spread > 1e-12, spread, 1.0)


def _ridge(design: Floats, losses: Floats, strength: float) -> tuple[Floats, Floats]:
    """Intercept (targets,) and weights (2 features, targets)."""
    middle, mean = design.mean(0), losses.mean(0)
    if np.isinf(strength):
        return mean, np.zeros((design.shape[1], losses.shape[1]))
    centred = design - middle
    penalty = strength * len(design) * np.eye(design.shape[1])
    weights: Floats = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (losses - mean))
    return mean - middle @ weights, weights


def _best_strength(design: Floats, losses: Floats) -> float:
    errors = dict.fromkeys(STRENGTHS, 0.0)
    for rest, fold in _folds(len(design)):
        for strength in STRENGTHS:
            intercept, weights = _ridge(design[rest], losses[rest], strength)
            errors[strength] += float(((losses[fold] - intercept - design[fold] @ weights) ** 2).sum())
    return min(errors, key=errors.__getitem__)


def _folds(count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(rest, fold) as indices, for folds drawn at random, always the same."""
    fold_of = np.random.default_rng(0).permutation(count) % FOLDS
    for fold in range(FOLDS):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
