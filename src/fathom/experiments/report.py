"""What an experiment shows at this look, from its log: numbers for every arm, and a verdict in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fathom.experiments.comparison import Difference, compare, inferiority, linearised
from fathom.experiments.config import Experiment, Guard, Metric, Unit
from fathom.experiments.exposures import Log
from fathom.experiments.mismatch import ALARM, p_value
from fathom.experiments.samples import Units, units_of
from fathom.experiments.sequential import MIN_UNITS


@dataclass(frozen=True)
class GuardRow:
    """A guard rail of an arm. ``worse``: by which share of the control's mean; negative is better."""

    name: str
    mean: float | None
    control: float | None
    worse: float | None
    margin: float
    state: str


@dataclass(frozen=True)
class ArmRow:
    """An arm beside the control, which has no comparison; None is what cannot be told (yet)."""

    name: str
    users: int
    requests: int
    share: float
    mean: float | None
    uplift: float | None = None
    uplift_low: float | None = None
    uplift_high: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    variance_removed: float | None = None
    guards: tuple[GuardRow, ...] = ()


@dataclass(frozen=True)
class Report:
    """One look. ``mismatch_p``: of units being in the arms as the shares say; ``mismatch.ALARM`` is its limit."""

    name: str
    unit: str
    metric: str
    confidence: float
    days: float
    arms: tuple[ArmRow, ...]
    mismatch_p: float
    moved: int
    waiting: int
    unmatched: int
    verdict: str


def report_of(log: Log) -> Report:
    """Judge a log; raises MissingExtraError without polars."""
    experiment = log.experiment
    units = units_of(log)
    others = [name for name in experiment.arms if name != experiment.control]
    # Several arms share the level, so that the probability of any wrong claim stays alpha.
    alpha = experiment.alpha / max(len(others), 1)
    rows = [_row(units, experiment, experiment.control, None, ())]
    compared: dict[str, Difference] = {}
    for arm in others:
        guards = tuple(_guard(units, experiment, arm, name, guard, alpha) for name, guard in experiment.guards.items())
        if experiment.primary is not None:
            samples = (units.sample(name, experiment.primary) for name in (arm, experiment.control))
            compared[arm] = compare(*samples, expected=experiment.expected_users, alpha=alpha)
        rows.append(_row(units, experiment, arm, compared.get(arm), guards))
    shares = [experiment.arms[row.name].share for row in rows]
    mismatch = p_value([row.users for row in rows], shares)
    times = log.exposures["time_s"]
    days = (times.max() - times.min()) / 86_400 if len(times) else 0.0
    return Report(
        log.name,
        experiment.unit,
        metric_text(experiment.primary, experiment.unit),
        1 - alpha,
        days,
        tuple(rows),
        mismatch,
        units.moved,
        units.waiting,
        units.unmatched,
        _verdict(experiment, rows, compared, mismatch),
    )


def metric_text(metric: Metric | None, unit: Unit) -> str:
    """A metric of such units in words."""
    if metric is None:
        return "no metric"
    if metric.measured:
        return metric.measured if metric.above is None else f"share of {metric.measured} above {metric.above:g}"
    forms = {"total": f"per {unit}", "any": f"{unit}s with any", "per_request": "per request"}
    return f"{metric.outcome}, {forms[metric.form]}"


def _row(
    units: Units, experiment: Experiment, arm: str, found: Difference | None, guards: tuple[GuardRow, ...]
) -> ArmRow:
    mean = None
    if experiment.primary is not None:
        sample = units.sample(arm, experiment.primary)
        mean = _finite(float(linearised(sample).mean())) if len(sample) else None
    count = int((units.table["arm"] == arm).sum())
    row = ArmRow(arm, count, units.requests(arm), experiment.arms[arm].share, mean, guards=guards)
    if found is None:
        return row
    return replace(
        row,
        uplift=_finite(found.uplift),
        uplift_low=_finite(found.uplift_low),
        uplift_high=_finite(found.uplift_high),
        difference=_finite(found.difference),
        low=_finite(found.low),
        high=_finite(found.high),
        p_value=found.p_value,
        variance_removed=found.variance_removed,
    )


def _guard(units: Units, experiment: Experiment, arm: str, name: str, guard: Guard, alpha: float) -> GuardRow:
    one, other = (units.sample(each, guard) for each in (arm, experiment.control))
    found = inferiority(
        one,
        other,
        margin=guard.margin,
        lower_is_better=guard.lower_is_better,
        expected=experiment.expected_users,
        alpha=alpha,
    )
    mean, control = (_finite(float(linearised(each).mean())) if len(each) else None for each in (one, other))
    return GuardRow(name, mean, control, _finite(found.worse), guard.margin, found.state)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _verdict(experiment: Experiment, rows: list[ArmRow], compared: Mapping[str, Difference], mismatch_p: float) -> str:
    """One sentence: what to do, the most urgent first."""
    if mismatch_p < ALARM:
        return f"Believe nothing here: {experiment.unit}s are not in the arms as the shares say; find out why."
    if not compared or experiment.primary is None:
        return "Nothing is compared: there is one arm."
    if min(row.users for row in rows) < MIN_UNITS:
        return f"Too early: every arm needs {MIN_UNITS} {experiment.unit}s."
    said = (_arm_verdict(experiment.primary, row, compared[row.name]) for row in rows[1:])
    return " ".join(said)


def _arm_verdict(metric: Metric, row: ArmRow, found: Difference) -> str:
    broken = [guard.name for guard in row.guards if guard.state == "broken"]
    unsure = [guard.name for guard in row.guards if guard.state == "open"]
    if broken:
        return f"Stop {row.name}: {' and '.join(broken)} got worse by more than allowed."
    better = found.high < 0 if metric.lower_is_better else found.low > 0
    if better and unsure:
        return f"{row.name} is better, but {' and '.join(unsure)} may still be worse than allowed; wait."
    if better:
        return f"{row.name} is better; promote it."
    if found.is_shown:
        return f"{row.name} is worse; stop it."
    low, high = found.uplift_low, found.uplift_high
    if low is not None and high is not None and max(-low, high) < metric.minimum_effect:
        return f"{row.name} differs from the control by less than {metric.minimum_effect:.1%}."
    return f"{row.name} is undecided; wait."
