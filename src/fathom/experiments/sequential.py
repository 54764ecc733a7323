"""Bounds on a mean that hold at every look: asymptotic confidence sequences.

A bound at n units is so many standard errors wide that a Brownian motion ever leaves it with probability at most alpha
(Robbins' normal mixture), and the standardised mean of many units follows one: Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", arXiv 2103.06476, theorem 2.2 and, for
one side, appendix B. No distribution is assumed beyond a finite variance (a little more than two moments); like any
central limit theorem it is an approximation until there are some hundred units.

All functions take numbers or arrays of one shape.
"""

import math
from typing import Any

import numpy as np

#: No bound before so many units in either arm: the approximation needs some.
MIN_UNITS = 100


def mixture(expected: float, alpha: float) -> float:
    """rho squared of the mixture whose bound is narrowest, in standard errors per root n, at ``expected`` units."""
    wanted = -2 * math.log(alpha)
    return (wanted + math.log(wanted + 1)) / expected


def half_width(units: Any, *, expected: float, alpha: float) -> Any:
    """Half of the two-sided interval's width at ``units``, in standard errors."""
    scale = units * mixture(expected, alpha)
    return np.sqrt(2 * (scale + 1) / scale * np.log(np.sqrt(scale + 1) / alpha))


def one_sided_width(units: Any, *, expected: float, alpha: float) -> Any:
    """How far a bound on one side lies from the mean, in standard errors."""
    scale = units * mixture(expected, 2 * alpha)
    return np.sqrt(2 * (scale + 1) / scale * np.log1p(np.sqrt(scale + 1) / (2 * alpha)))


def log_evidence(z: Any, units: Any, *, expected: float, alpha: float) -> Any:
    """Logarithm of the e-value against a mean of zero that lies ``z`` standard errors away.

    It reaches log(1 / alpha) exactly when the interval of ``half_width`` excludes zero; exp(-evidence), at most 1, is a
    p-value that holds at every look. ``alpha``: the level that the mixture suits; others remain valid.
    """
    scale = units * mixture(expected, alpha)
    return z**2 / 2 * scale / (scale + 1) - np.log1p(scale) / 2
