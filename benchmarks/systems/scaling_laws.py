"""Laws of cost by size, fitted by least squares on relative errors, and where they reach a limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev

import numpy as np
from scipy import stats

from fathom.training.metrics import Interval

#: Sizes beyond this are not looked for.
LARGEST = 1e12
#: Significant ones of a coefficient; what is measured has no more.
DIGITS = 6


@dataclass(frozen=True)
class Law:
    """cost(x) = the sum of coefficient * x ** power, fitted to medians over repetitions.

    coefficients: one for each power; their 95 % intervals come from the spread of fits of single repetitions, and have
    no width where there is only one. worst: the largest relative residual. r2: the share of the squared relative
    residuals of the best constant that the law explains. largest: the largest x that was measured.
    """

    powers: tuple[float, ...]
    coefficients: tuple[Interval, ...]
    worst: float
    r2: float
    largest: float

    def __call__(self, x: float) -> float:
        """The cost at a size."""
        return float(sum(each.value * x**power for power, each in zip(self.powers, self.coefficients, strict=True)))

    def reaches(self, cost: float) -> float | None:
        """The least size at which it costs so much, 0 where it always does; None beyond LARGEST."""
        if self(0) >= cost:
            return 0.0
        high = 1.0
        while self(high) < cost:
            high *= 2
            if high > LARGEST:
                return None
        low = 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self(middle) < cost else (low, middle)
        return high


def fit(measured: Mapping[float, Sequence[float]], powers: tuple[float, ...]) -> Law | None:
    """The law of these powers; ``measured``: size -> its cost in each repetition, above 0.

    None with no more sizes than powers, where any law would fit.
    """
    if len(measured) <= len(powers):
        return None
    sizes = np.array(sorted(measured), float)
    middle = np.array([median(measured[size]) for size in sizes])
    found = _coefficients(sizes, middle, powers)
    turns = zip(*(measured[size] for size in sizes), strict=True)
    each = [_coefficients(sizes, np.array(turn), powers) for turn in turns]
    residuals = _matrix(sizes, middle, powers) @ found - 1
    constant = _matrix(sizes, middle, (0,)) @ _coefficients(sizes, middle, (0,)) - 1
    spread = float(constant @ constant)
    return Law(
        powers,
        tuple(_interval(float(value), [float(one[place]) for one in each]) for place, value in enumerate(found)),
        float(np.abs(residuals).max()),
        1 - float(residuals @ residuals) / spread if spread else 0.0,
        float(sizes[-1]),
    )


def crossing(measured: Mapping[float, float], limit: float) -> float | None:
    """Where the cost passes a limit first: between two sizes on a straight line through their logarithms.

    The smallest size, where it lies above already; None where no size does.
    """
    sizes = sorted(measured)
    for place, size in enumerate(sizes):
        if measured[size] > limit:
            if not place:
                return size
            before = sizes[place - 1]
            costs = np.log([measured[before], measured[size]])
            share = (np.log(limit) - costs[0]) / (costs[1] - costs[0])
            return float(np.exp(np.log(before) + share * (np.log(size) - np.log(before))))
    return None


def _matrix(sizes: np.ndarray, costs: np.ndarray, powers: Sequence[float]) -> np.ndarray:
    """(sizes, powers): what each term contributes, as a share of the cost."""
    terms: np.ndarray = np.stack([sizes**power for power in powers], axis=1) / costs[:, None]
    return terms


def _coefficients(sizes: np.ndarray, costs: np.ndarray, powers: Sequence[float]) -> np.ndarray:
    terms = _matrix(sizes, costs, powers)
    # Powers of large sizes lie far apart: each term is fitted at its own scale.
    scale = np.abs(terms).max(axis=0)
    found: np.ndarray = np.linalg.lstsq(terms / scale, np.ones(len(costs)), rcond=None)[0] / scale
    # The last digits depend on the processor; a picture that is drawn anew must be the one that is kept.
    return np.array([float(f"{value:.{DIGITS}g}") for value in found])


def _interval(value: float, each: Sequence[float]) -> Interval:
    if len(each) < 2:
        return Interval(value, value, value)
    half = float(stats.t.ppf(0.975, len(each) - 1)) * stdev(each) / len(each) ** 0.5
    return Interval(value, value - half, value + half)
