"""Expected losses as a sum of tables, one per feature, each of which only rises or only falls.

An additive model of isotonic steps, fitted by boosting one feature after the other (backfitting, Hastie and Tibshirani
1990): it can follow bends that a square cannot, and nothing in it needs a scale.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from fathom.selector.isotonic import isotonic
from fathom.selector.schema import STRICT, Finite, Floats

BINS = 12
ROUNDS = 6
#: A step counts as if so many further requests had no loss to explain.
SHRINKAGE = 50.0


@dataclass(frozen=True, config=STRICT)
class TableModel:
    """``edges``: of each feature, ascending, BINS - 1 of them. ``steps``: per target and feature, what each bin adds.

    A value belongs to the bin of the edges that it exceeds. The last step is for an unknown feature, NaN.
    """

    edges: tuple[tuple[Finite, ...], ...]
    steps: tuple[tuple[tuple[Finite, ...], ...], ...]
    intercept: tuple[Finite, ...]

    def __post_init__(self) -> None:
        features, targets = self.sizes
        if len(self.steps) != targets or any(len(each) != features for each in self.steps):
            raise ValueError("edges, steps and intercept do not fit together")
        if any(len(each) != BINS - 1 for each in self.edges) or any(len(s) != BINS + 1 for t in self.steps for s in t):
            raise ValueError(f"a feature needs {BINS - 1} edges and {BINS + 1} steps")

    @property
    def sizes(self) -> tuple[int, int]:
        """Features and targets."""
        return len(self.edges), len(self.intercept)

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats, Floats, NDArray[np.intp]]:
        # (targets, features, bins) -> (features x bins, targets): what is added lies together.
        steps = np.array(self.steps).transpose(1, 2, 0).reshape(-1, len(self.intercept))
        return np.array(self.edges), steps, np.array(self.intercept), (BINS + 1) * np.arange(len(self.edges))

    def predict_one(self, row: Sequence[float]) -> list[float]:
        """As ``predict`` for one row."""
        losses: list[float] = self.predict(row).tolist()
        return losses

    def predict(self, rows: Sequence[float] | Floats) -> Floats:
        """Losses (targets,) of one row (features,), or (n, targets) of rows (n, features)."""
        edges, steps, intercept, first = self._arrays
        losses: Floats = steps.take(_bins(np.asarray(rows, dtype=np.float64), edges) + first, axis=0).sum(axis=-2)
        losses += intercept
        return losses

    @classmethod
    def fit(cls, rows: Floats, losses: Floats, users: NDArray[np.integer]) -> "TableModel":  # noqa: ARG003
        """Learn from features (n, features) and losses (n, targets), n >= 1."""
        known = [column[~np.isnan(column)] for column in rows.T]
        grid = np.linspace(0, 1, BINS + 1)[1:-1]
        edges = np.array([np.quantile(column, grid) if len(column) else np.zeros(BINS - 1) for column in known])
        bins, mean = _bins(rows, edges), losses.mean(0)
        steps = [_additive(bins, target) for target in (losses - mean).T]
        return cls(
            tuple(map(tuple, edges.tolist())),
            tuple(tuple(map(tuple, each.tolist())) for each in steps),
            tuple(mean.tolist()),
        )


def _bins(rows: Floats, edges: Floats) -> NDArray[np.intp]:
    """The bin of each value (..., features); BINS for NaN."""
    found: NDArray[np.intp] = (rows[..., None] > edges).sum(axis=-1)
    found[np.isnan(rows)] = BINS
    return found


def _additive(bins: NDArray[np.intp], target: Floats) -> Floats:
    """Steps (features, BINS + 1) whose sum explains a target (n,) without mean."""
    steps = np.zeros((bins.shape[1], BINS + 1))
    rest = target.copy()
    for _ in range(ROUNDS):
        for feature, column in enumerate(bins.T):
            rest += steps[feature].take(column)
            steps[feature] = _monotone(column, rest)
            rest -= steps[feature].take(column)
    return steps


def _monotone(column: NDArray[np.intp], rest: Floats) -> Floats:
    """Steps (BINS + 1,) that rise or fall, whichever explains more of the rest (n,); that of NaN is free."""
    count = np.bincount(column, minlength=BINS + 1)
    means = np.bincount(column, rest, BINS + 1) / (count + SHRINKAGE)
    values, weights = means[:BINS], count[:BINS].astype(np.float64) + 1e-9
    rising, falling = isotonic(values, weights), -isotonic(-values, weights)
    best = min((rising, falling), key=lambda each: float(weights @ (values - each) ** 2))
    return np.append(best, means[BINS])
