"""Two arms compared, unit by unit: means or ratios, with or without what was known of the units before.

The unit is what was randomised (a user), never the request: requests of one user are not independent. A metric per
request is a ratio of two sums over units, whose variance is that of the linearised units (the delta method: Deng,
Knoblich and Lu, "Applying the delta method in metric analytics", KDD 2018).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.experiments.sequential import MIN_UNITS, half_width, log_evidence, one_sided_width

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The units of an arm (n,). ``counts``: what totals are divided by, for a ratio. ``covariate``: NaN is unknown."""

    totals: Floats
    counts: Floats | None = None
    covariate: Floats | None = None

    def __len__(self) -> int:
        return len(self.totals)


@dataclass(frozen=True)
class Moments:
    """An arm's metric: its estimated mean, the square of that estimate's standard error, and the number of units."""

    mean: float
    squared_error: float
    units: int


@dataclass(frozen=True)
class Difference:
    """Treatment minus control, at this look.

    ``low`` and ``high`` bound it at every look with probability 1 - alpha, ``uplift_low`` and ``uplift_high`` its ratio
    to the control's mean (None: unbounded). ``p_value``: valid at every look. ``variance_removed``: the share that the
    covariate explains.
    """

    treatment: Moments
    control: Moments
    difference: float
    low: float
    high: float
    p_value: float
    uplift: float | None
    uplift_low: float | None
    uplift_high: float | None
    variance_removed: float = 0.0

    @property
    def is_shown(self) -> bool:
        """Whether zero is excluded."""
        return self.low > 0 or self.high < 0


def linearised(sample: Sample) -> Floats:
    """Values (n,) whose mean is the arm's metric, and whose variance over n is that of the metric."""
    if sample.counts is None:
        return sample.totals
    each = float(sample.counts.mean()) if len(sample) else 0.0
    if not each:
        return np.full(len(sample), np.nan)
    ratio = float(sample.totals.sum() / sample.counts.sum())
    values: Floats = ratio + (sample.totals - ratio * sample.counts) / each
    return values


def adjusted(treatment: Sample, control: Sample) -> tuple[Floats, Floats]:
    """Both arms' values without what the covariate explains (CUPED).

    One slope for both arms, estimated within them, and one centre: the arms' difference keeps its expectation, because
    nothing that is known before the assignment can differ between them but by chance. Units of unknown covariate, and
    arms without any, stay as they are. Deng, Xu, Kohavi and Walker, WSDM 2013.
    """
    values = linearised(treatment), linearised(control)
    if treatment.covariate is None or control.covariate is None:
        return values
    both = np.concatenate([treatment.covariate, control.covariate])
    if not np.isfinite(both).any():
        return values
    centre = float(both[np.isfinite(both)].mean())
    centred = [np.nan_to_num(each.covariate - centre) for each in (treatment, control)]  # type: ignore[operator]
    within = [each - each.mean() for each in centred]
    spread = sum(float(each @ each) for each in within)
    if not spread:
        return values
    slope = sum(float(each @ value) for each, value in zip(within, values, strict=True)) / spread
    return values[0] - slope * centred[0], values[1] - slope * centred[1]


def moments(values: Floats) -> Moments:
    """Of independent units; infinite error for fewer than two."""
    if len(values) < 2:
        return Moments(float(values.mean()) if len(values) else math.nan, math.inf, len(values))
    return Moments(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values))


def compare(treatment: Sample, control: Sample, *, expected: float, alpha: float) -> Difference:
    """Treatment against control. ``expected``: units of both arms at which the interval is narrowest."""
    one, other = (moments(values) for values in adjusted(treatment, control))
    squared, difference = one.squared_error + other.squared_error, one.mean - other.mean
    if min(one.units, other.units) < MIN_UNITS or not 0 < squared < math.inf:
        return Difference(one, other, difference, -math.inf, math.inf, 1.0, _uplift(one, other), None, None)
    units, error = one.units + other.units, math.sqrt(squared)
    widths = float(half_width(units, expected=expected, alpha=alpha))
    evidence = float(log_evidence(difference / error, units, expected=expected, alpha=alpha))
    bounds = difference - widths * error, difference + widths * error
    relative = ratio_interval(one, other, widths)
    p_value = math.exp(-max(evidence, 0.0))
    plain = sum(moments(linearised(each)).squared_error for each in (treatment, control))
    return Difference(
        one, other, difference, *bounds, p_value, _uplift(one, other), *relative, variance_removed=1 - squared / plain
    )


def _uplift(one: Moments, other: Moments) -> float | None:
    return one.mean / other.mean - 1 if other.mean else None


def ratio_interval(one: Moments, other: Moments, widths: float) -> tuple[float | None, float | None]:
    """The uplifts r for which one - (1 + r) other lies within so many standard errors of zero (Fieller's interval).

    (None, None) where the control's own mean cannot be told from zero, so that any ratio is possible.
    """
    a = other.mean**2 - widths**2 * other.squared_error
    b = one.mean * other.mean
    c = one.mean**2 - widths**2 * one.squared_error
    if not a > 0:
        return None, None
    # Real, because the point estimate itself solves the inequality.
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return (b - root) / a - 1, (b + root) / a - 1


@dataclass(frozen=True)
class Inferiority:
    """How much worse than the control, as a share of its mean, an arm is (``worse``), and at most and at least is.

    ``state``: "kept", where it is shown to be worse by less than the margin; "broken", by more; else "open".
    """

    worse: float | None
    state: str


def inferiority(
    treatment: Sample, control: Sample, *, margin: float, lower_is_better: bool, expected: float, alpha: float
) -> Inferiority:
    """Whether the treatment is worse by more than a share ``margin`` of the control's mean.

    Each of the two answers is ever given wrongly with probability at most ``alpha``, however often one looks.
    """
    one, other = (moments(values) for values in adjusted(treatment, control))
    sign = 1 if lower_is_better else -1
    uplift = _uplift(one, other)
    worse = None if uplift is None else sign * uplift
    factor = 1 + sign * margin
    squared = one.squared_error + factor**2 * other.squared_error
    if min(one.units, other.units) < MIN_UNITS or not squared < math.inf:
        return Inferiority(worse, "open")
    beyond = sign * (one.mean - factor * other.mean)
    reach = float(one_sided_width(one.units + other.units, expected=expected, alpha=alpha)) * math.sqrt(squared)
    return Inferiority(worse, "broken" if beyond > reach else "kept" if beyond < -reach else "open")
