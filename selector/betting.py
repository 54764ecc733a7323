"""Tests by betting: a bounded mean is shown to be below zero once the capital of a bet on it is large enough.

A gambler starts with 1 and stakes a share of the capital on every value being negative, chosen from the values before
it. Where the expectation of each value is not negative, the capital is expected not to grow, so it ever reaches
1 / delta with probability at most delta (Ville, 1939), however many values there are and whenever one looks. No
distribution is assumed, only a bound. After Waudby-Smith and Ramdas, arXiv 2010.09686.
"""

import math
from collections.abc import Callable

import numpy as np

from fathom.selector.schema import Floats

#: No more of the capital than this is ever lost to one value.
MOST_AT_STAKE = 0.75
#: The values that a streaming stake remembers: a change is met after about so many.
MEMORY = 50
#: Capital is counted up to here.
RICHEST = 1e300


def log_capital(values: Floats, *, largest: float, delta: float) -> Floats:
    """Logarithm of the capital after each value, (n,) or one column per series (n, m), in the order given.

    ``largest``: no value can be above it. The stakes suit a test at level ``delta`` after all n values (equation 26 of
    the paper: the variance so far decides), and any other level remains valid.
    """
    count = np.arange(1, len(values) + 1, dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
    # Begins as if one value had been seen already, as far from zero as the bound allows half of.
    start = largest**2 / 4
    means = np.cumsum(values, axis=0) / (count + 1)
    variances = (start + np.cumsum((values - means) ** 2, axis=0)) / (count + 1)
    before = np.concatenate([np.full_like(variances[:1], start), variances[:-1]])
    stakes = np.sqrt(2 * math.log(1 / delta) / (len(values) * before))
    path: Floats = np.cumsum(np.log1p(-np.minimum(stakes, MOST_AT_STAKE / largest) * values), axis=0)
    return path


def log_evidence(values: Floats, *, largest: float, delta: float) -> float:
    """Logarithm of the most capital that a bet on independent values (n,) being below zero on average ever had.

    Where they are not, it reaches log(1 / a) with probability at most a, whatever a is: exp(-evidence) is a p-value.
    ``delta``: the level that the stakes suit.
    """
    return float(log_capital(values, largest=largest, delta=delta).max(initial=0.0))


def is_negative(values: Floats, *, largest: float, delta: float) -> bool:
    """Whether independent values (n,) are shown to be below zero on average, wrongly with probability <= ``delta``."""
    return log_evidence(values, largest=largest, delta=delta) >= math.log(1 / delta)


def values_needed(values: Floats, *, largest: float, delta: float) -> int | None:
    """About how many values such as these (n,) would show it; None when they are not below zero on average."""
    mean = float(values.mean()) if len(values) else 0.0
    if mean >= 0:
        return None
    # The stake at which the logarithm of the capital grows fastest, to second order, and that growth for one value.
    square = float((values**2).mean())
    stake = min(-mean / square, MOST_AT_STAKE / largest)
    growth = -stake * mean - stake**2 * square / 2
    # With luck as it comes, twice as many are enough.
    return math.ceil(2 * math.log(1 / delta) / growth)


def largest_shown(shown: Callable[[float], bool], *, low: float = 0.0, high: float = 1.0, steps: int = 20) -> float:
    """The largest x in [low, high] for which ``shown(x)`` holds, by bisection; ``low`` where it holds nowhere."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if shown(middle) else (low, middle)
    return low


class Evidence:
    """A stream of values in [0, 1]: the evidence so far that their expectation has fallen below ``expected``.

    ``capital``, 1 at first, is an e-process: while no value's expectation is below ``expected``, it ever reaches
    1 / alpha with probability at most alpha. A part of the money waits and is put in later, so that a change after
    a million values is noticed nearly as soon as one after ten.
    """

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self.count = 0
        self.mean = 0.0
        self._at_work = 0.0
        self._shortfall = 0.0
        self._variance = 0.25

    @property
    def capital(self) -> float:
        """What the gambler has: money at work and money that waits."""
        return self._at_work + 1 / (self.count + 1)

    def add(self, value: float) -> None:
        """Take one value."""
        shortfall = self.expected - value
        self.count += 1
        # Of the 1 / count that waits, 1 / (count + 1) goes on waiting.
        self._at_work += 1 / (self.count * (self.count + 1))
        # The stake is set before this value counts: growth-optimal for the recent mean and variance.
        wanted = self._shortfall / (self._variance + self._shortfall**2)
        most = MOST_AT_STAKE / max(1 - self.expected, 1e-9)
        self._at_work = min(self._at_work * (1 + min(max(wanted, 0.0), most) * shortfall), RICHEST)
        self.mean += (value - self.mean) / self.count
        weight = 1 / min(self.count + 1, MEMORY)
        self._variance += weight * ((shortfall - self._shortfall) ** 2 - self._variance)
        self._shortfall += weight * (shortfall - self._shortfall)
