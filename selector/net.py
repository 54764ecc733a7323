"""Expected losses by a net with one hidden layer, small enough to learn and to evaluate with numpy alone."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from fathom.selector.learned import moments, standardised
from fathom.selector.schema import STRICT, Finite, Floats

HIDDEN = 16
STEPS = 200
RATE = 0.02
DECAY = 1e-3

_Single = NDArray[np.float32]
Matrix = tuple[tuple[Finite, ...], ...]


@dataclass(frozen=True, config=STRICT)
class NetModel:
    """``out`` x tanh(``hidden`` x standardised features + ``bias``) + ``intercept``.

    ``centre`` and ``scale``: of each feature; an unknown one, NaN, counts as its mean. ``hidden``: (features, HIDDEN).
    ``out``: (HIDDEN, targets).
    """

    centre: tuple[Finite, ...]
    scale: tuple[Finite, ...]
    hidden: Matrix
    bias: tuple[Finite, ...]
    out: Matrix
    intercept: tuple[Finite, ...]

    def __post_init__(self) -> None:
        features, targets = self.sizes
        if len(self.scale) != features or any(scale <= 0 for scale in self.scale):
            raise ValueError("centre and scale do not fit together, or a scale is not positive")
        if len(self.hidden) != features or any(len(row) != len(self.bias) for row in self.hidden):
            raise ValueError("hidden and bias do not fit the features")
        if len(self.out) != len(self.bias) or any(len(row) != targets for row in self.out):
            raise ValueError("out does not fit hidden and intercept")

    @property
    def sizes(self) -> tuple[int, int]:
        """Features and targets."""
        return len(self.centre), len(self.intercept)

    @cached_property
    def _arrays(self) -> tuple[Floats, ...]:
        scaling = np.array(self.centre), 1 / np.array(self.scale)
        return *scaling, *map(np.array, (self.hidden, self.bias, self.out, self.intercept))

    def predict_one(self, row: Sequence[float]) -> list[float]:
        """As ``predict`` for one row."""
        losses: list[float] = self.predict(row).tolist()
        return losses

    def predict(self, rows: Sequence[float] | Floats) -> Floats:
        """Losses (targets,) of one row (features,), or (n, targets) of rows (n, features)."""
        centre, per_scale, hidden, bias, out, intercept = self._arrays
        active = np.tanh(standardised(np.array(rows), centre, per_scale).dot(hidden) + bias)
        losses: Floats = active.dot(out) + intercept
        return losses

    @classmethod
    def fit(cls, rows: Floats, losses: Floats, users: NDArray[np.integer]) -> "NetModel":  # noqa: ARG003
        """Learn from features (n, features) and losses (n, targets), n >= 1: Adam on all of them at once."""
        centre, scale = moments(rows)
        inputs, mean = standardised(rows.copy(), centre, 1 / scale).astype(np.float32), losses.mean(0)
        (features, targets), random = (inputs.shape[1], losses.shape[1]), np.random.default_rng(0)
        shapes = ((features, HIDDEN), HIDDEN, (HIDDEN, targets), targets)
        weights = [np.zeros(shape, np.float32) for shape in shapes]
        weights[0] += random.normal(0, 1 / np.sqrt(max(1, features)), shapes[0])
        _adam(weights, inputs, (losses - mean).astype(np.float32))
        made, bias, out, intercept = weights
        vectors = [tuple(values.tolist()) for values in (centre, scale, bias, mean + intercept)]
        matrices = [tuple(map(tuple, values.tolist())) for values in (made, out)]
        return cls(vectors[0], vectors[1], matrices[0], vectors[2], matrices[1], vectors[3])


def _adam(weights: list[_Single], inputs: _Single, target: _Single) -> None:
    """Bring the weights to a low mean square of the errors, in place (Kingma and Ba 2015), with decay towards 0."""
    first, second = [np.zeros_like(each) for each in weights], [np.zeros_like(each) for each in weights]
    for step in range(1, STEPS + 1):
        rate = RATE * (1 - (step - 1) / STEPS)
        for weight, slope, mean, square in zip(weights, _slopes(weights, inputs, target), first, second, strict=True):
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope**2 - square)
            weight -= rate * (mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8) + DECAY * weight)


def _slopes(weights: list[_Single], inputs: _Single, target: _Single) -> list[_Single]:
    hidden, bias, out, intercept = weights
    active = np.tanh(inputs @ hidden + bias)
    error = (active @ out + intercept - target) * np.float32(2 / len(inputs))
    back = (error @ out.T) * (1 - active**2)
    return [inputs.T @ back, back.sum(0), active.T @ error, error.sum(0)]
