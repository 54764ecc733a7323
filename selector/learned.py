"""What a depth is expected to lose against the deepest, learned from requests whose answers are known.

A ridge regression on each feature and its square: small enough to evaluate in microseconds, and stiff enough to say
nothing where there is nothing to say. The strength of the penalty is chosen by cross-validation over users, and one of
the choices is a constant.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from operator import mul
from typing import Protocol

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

    @property
    def sizes(self) -> tuple[int, int]:
        """Features and targets."""
        return len(self.centre), len(self.intercept)

    def __post_init__(self) -> None:
        features, targets = self.sizes
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
        design = _with_squares(standardised(np.array(rows), centre, per_scale))
        losses: Floats = design.dot(weights)
        losses += intercept
        return losses

    def predict_one(self, row: Sequence[float]) -> list[float]:
        """As ``predict`` for one row, in a quarter of the time: for so few numbers the overhead of arrays dominates."""
        design = []
        for value, centre, scale in zip(row, self.centre, self.scale, strict=True):
            z = (value - centre) / scale
            # Also where it is NaN.
            design.append(z if -FARTHEST < z < FARTHEST else FARTHEST if z > 0 else -FARTHEST if z < 0 else 0.0)
        design += [z * z for z in design]
        return [
            constant + sum(map(mul, own, design)) for constant, own in zip(self.intercept, self.weights, strict=True)
        ]

    @classmethod
    def fit(cls, rows: Floats, losses: Floats, users: NDArray[np.integer] | None = None) -> "LossModel":
        """Learn from features (n, features) and losses (n, targets) of requests, n >= 1.

        ``users`` (n,): whose they are; None: one each.
        """
        users = np.arange(len(rows)) if users is None else users
        centre, scale = moments(rows)
        design = _with_squares(standardised(rows.copy(), centre, 1 / scale))
        intercept, weights = _ridge(design, losses, _best_strength(design, losses, users))
        return cls(_floats(centre), _floats(scale), _floats(intercept), tuple(map(_floats, weights.T)))


class Predictor(Protocol):
    """What ``fit`` of a learner returns."""

    def predict(self, rows: Floats, /) -> Floats:
        """Losses (n, targets) of rows (n, features)."""


Fit = Callable[[Floats, Floats, NDArray[np.integer]], Predictor]
"""Learns from features (n, features), losses (n, targets) and whose requests they are (n,)."""


def cross_fitted(fit: Fit, rows: Floats, losses: Floats, users: NDArray[np.integer]) -> Floats:
    """Losses (n, targets) that models predict for requests (n, features) of users that they have not learned from."""
    predicted = np.empty_like(losses)
    for rest, fold in folds(users):
        predicted[fold] = fit(rows[rest], losses[rest], users[rest]).predict(rows[fold])
    return predicted


def folds(users: NDArray[np.integer]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(rest, fold) as indices of requests (n,), n >= 1, by their users, at random but always the same.

    A single user's requests are both.
    """
    known, user = np.unique(users, return_inverse=True)
    count = min(FOLDS, len(known))
    fold_of = (np.random.default_rng(0).permutation(len(known)) % count)[user]
    for fold in range(count):
        inside = fold_of == fold
        yield np.flatnonzero(~inside if count > 1 else inside), np.flatnonzero(inside)


def standardised(rows: Floats, centre: Floats, per_scale: Floats) -> Floats:
    """``rows`` (..., features) itself, overwritten: 0 on average and where unknown, at most FARTHEST away from it."""
    rows -= centre
    rows *= per_scale
    rows[rows != rows] = 0.0
    np.minimum(rows, FARTHEST, out=rows)
    np.maximum(rows, -FARTHEST, out=rows)
    return rows


def moments(rows: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (features,) of what is known in rows (n, features); 1 for what never changes."""
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(0), 1)
    centre = np.where(known, rows, 0.0).sum(0) / count
    spread = np.sqrt((np.where(known, rows - centre, 0.0) ** 2).sum(0) / count)
    return centre, np.where(spread > 1e-12, spread, 1.0)


def _with_squares(rows: Floats) -> Floats:
    return np.concatenate((rows, rows * rows), axis=-1)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(values.tolist())


def _ridge(design: Floats, losses: Floats, strength: float) -> tuple[Floats, Floats]:
    """Intercept (targets,) and weights (2 features, targets)."""
    middle, mean = design.mean(0), losses.mean(0)
    if np.isinf(strength):
        return mean, np.zeros((design.shape[1], losses.shape[1]))
    centred = design - middle
    penalty = strength * len(design) * np.eye(design.shape[1])
    weights: Floats = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (losses - mean))
    return mean - middle @ weights, weights


def _best_strength(design: Floats, losses: Floats, users: NDArray[np.integer]) -> float:
    errors = dict.fromkeys(STRENGTHS, 0.0)
    for rest, fold in folds(users):
        for strength in STRENGTHS:
            intercept, weights = _ridge(design[rest], losses[rest], strength)
            errors[strength] += float(((losses[fold] - intercept - design[fold] @ weights) ** 2).sum())
    return min(errors, key=errors.__getitem__)
