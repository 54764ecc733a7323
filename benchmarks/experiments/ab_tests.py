"""Do experiments keep their word? Simulated users, daily looks: false alarms, what is found and when, and rollbacks.

A cascade model of clicks: whoever visits reads the list from the top and clicks at most one item, with a probability
that depends on the item's rank and attractiveness and on the user's taste. Users differ in taste and in how often they
come, and bring what they clicked in the four weeks before. The arms' lists differ in the attractiveness of their items.
"""

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.experiments.canary import CanaryMonitor, Observation, State
from fathom.experiments.config import Canary
from fathom.experiments.mismatch import ALARM, p_value
from fathom.experiments.sequential import MIN_UNITS, half_width

Floats = NDArray[np.float64]

EXPERIMENTS = 1_000
DAYS, BEFORE_DAYS, WINDOW_DAYS = 30, 28, 7
USERS = 20_000
ALPHA = 0.05
UPLIFT = 0.05
PEEKED = 1.959964
#: Attractiveness of the control's list, by rank.
ATTRACTION = 0.25 / np.log2(np.arange(10) + 2)
VISITS_A_DAY, VISITS_SHAPE = 0.2, 0.7
TASTE = (2.0, 3.0)
METRICS = {
    "clicks per user, so far": "clicks",
    "clicks per user, so far, CUPED": "adjusted",
    f"clicks per user in {WINDOW_DAYS} days": "window",
    f"clicks per user in {WINDOW_DAYS} days, CUPED": "adjusted window",
    "users with any click, so far": "any",
    "clicks per request": "ratio",
}


def click_probability(taste: Floats, scale: float) -> Floats:
    """Of a visit, for lists whose items are ``scale`` times as attractive as the control's."""
    return np.asarray(1 - np.prod(1 - taste[:, None] * ATTRACTION * scale, axis=1))


@cache
def scale_for(uplift: float) -> float:
    """How much more attractive a list is that gets so many more clicks a visit, over all users."""
    taste = np.random.default_rng(0).beta(*TASTE, 100_000)
    low, high, base = 1.0, 2.0, click_probability(taste, 1.0).mean()
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if click_probability(taste, middle).mean() / base - 1 > uplift else (middle, high)
    return high


class Population(NamedTuple):
    """One experiment: the covariate (n,), and visits and clicks of every user and day (n, DAYS).

    The first ``treated`` of the users are in the treatment.
    """

    treated: int
    before: Floats
    visits: NDArray[np.integer]
    clicks: NDArray[np.integer]


def simulate(random: np.random.Generator, users: int, uplift: float) -> Population:
    """Users of whom half get a list that gets so many more clicks."""
    taste = random.beta(*TASTE, users)
    activity = random.gamma(VISITS_SHAPE, VISITS_A_DAY / VISITS_SHAPE, users)
    # Users are alike before they get an arm, so which of them do makes no difference; how many is left to chance.
    treated = int(random.binomial(users, 0.5))
    control = click_probability(taste, 1.0)
    chance = control.copy()
    if uplift:
        chance[:treated] = click_probability(taste[:treated], scale_for(uplift))
    visits = random.poisson(np.broadcast_to(activity[:, None], (users, DAYS))).astype(np.int16)
    clicks = np.zeros_like(visits)
    seen = visits > 0
    clicks[seen] = random.binomial(visits[seen], np.broadcast_to(chance[:, None], visits.shape)[seen])
    before = random.binomial(random.poisson(BEFORE_DAYS * activity), control)
    return Population(treated, before.astype(np.float64), visits, clicks)


class Sums(NamedTuple):
    """Sums over an arm's users at each look (DAYS,): how many, of y, y squared, and with x what goes with it."""

    n: Floats
    y: Floats
    yy: Floats
    x: Floats
    xx: Floats
    xy: Floats


def sums(values: Floats, counted: NDArray[np.bool_], other: Floats) -> Sums:
    """``values`` and ``other`` (n, DAYS), zero where a user does not count."""
    pairs = ((values, values), (other, other), (values, other))
    yy, xx, xy = (np.einsum("ud,ud->d", one, two) for one, two in pairs)
    return Sums(counted.sum(axis=0).astype(np.float64), values.sum(axis=0), yy, other.sum(axis=0), xx, xy)


def z_of(one: Sums, two: Sums, form: str) -> tuple[Floats, Floats]:
    """Standard errors that the arms are apart, and users, at each look; as ``comparison.compare`` has it.

    form: "mean", "adjusted" (x is the covariate), or "ratio" (y over x).
    """
    means, variances = [], []
    if form == "adjusted":
        spread = sum(each.xx - each.x**2 / each.n for each in (one, two))
        slope = sum(each.xy - each.x * each.y / each.n for each in (one, two)) / np.where(spread > 0, spread, 1.0)
    for each in (one, two):
        y, yy = each.y, each.yy
        scale: Any = 1.0
        if form == "adjusted":
            y, yy = y - slope * each.x, yy - 2 * slope * each.xy + slope**2 * each.xx
        elif form == "ratio":
            ratio, scale = each.y / each.x, each.x / each.n
            y, yy = each.n * 0.0, each.yy - 2 * ratio * each.xy + ratio**2 * each.xx
        variances.append((yy - y**2 / each.n) / (each.n - 1) / each.n / scale**2)
        means.append(each.y / each.x if form == "ratio" else y / each.n)
    z = (means[0] - means[1]) / np.sqrt(sum(variances))
    enough = np.minimum(one.n, two.n) >= MIN_UNITS
    return np.where(enough & np.isfinite(z), z, 0.0), one.n + two.n


def looks(drawn: Population) -> dict[str, tuple[Floats, Floats]]:
    """Of every metric: z and the number of users, at the end of each day."""
    clicks = drawn.clicks.cumsum(axis=1, dtype=np.float64)
    visits = drawn.visits.cumsum(axis=1, dtype=np.float64)
    seen = visits > 0
    before = seen * drawn.before[:, None]
    first = seen.argmax(axis=1)
    ripe = seen & (np.arange(DAYS) - first[:, None] >= WINDOW_DAYS)
    last = np.minimum(first + WINDOW_DAYS - 1, DAYS - 1)
    window = ripe * np.take_along_axis(clicks, last[:, None], axis=1)
    ripe_before = ripe * drawn.before[:, None]
    arms = {
        "clicks": (clicks, seen, before),
        "window": (window, ripe, ripe_before),
        "any": ((clicks > 0).astype(np.float64), seen, before),
        "ratio": (clicks, seen, visits),
    }
    found = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, values in arms.items():
            one, two = (
                sums(*(each[side] for each in values)) for side in (np.s_[: drawn.treated], np.s_[drawn.treated :])
            )
            found[name] = z_of(one, two, "ratio" if name == "ratio" else "mean")
            if name in ("clicks", "window"):
                found["adjusted" if name == "clicks" else "adjusted window"] = z_of(one, two, "adjusted")
    return found


def days_of(experiments: int, users: int, uplift: float, seed: int) -> dict[str, dict[str, Floats]]:
    """Metric -> test -> for each experiment the first day of a claim (1 to DAYS), infinity where there is none.

    Tests: "better" and "different" at every look; "peeked": a fixed test looked at daily; "once": that on the last day.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in METRICS.values()}
    random = np.random.default_rng([seed, int(1e4 * uplift)])
    for _ in range(experiments):
        for name, (z, units) in looks(simulate(random, users, uplift)).items():
            width = half_width(np.maximum(units, 1.0), expected=users, alpha=ALPHA)
            claims = {
                "better": z > width,
                "different": np.abs(z) > width,
                "peeked": np.abs(z) > PEEKED,
                "once": np.where(np.arange(DAYS) == DAYS - 1, np.abs(z) > PEEKED, False),
            }
            for test, claimed in claims.items():
                day = float(claimed.argmax() + 1) if claimed.any() else math.inf
                found[name].setdefault(test, []).append(day)
    return {name: {test: np.array(days) for test, days in tests.items()} for name, tests in found.items()}


def _median(days: Floats) -> float | None:
    middle = float(np.median(days))
    return middle if math.isfinite(middle) else None


def claim_rows(experiments: int, users: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How often a difference is claimed where there is none, and how often and when a real one is found."""
    none, real = (days_of(experiments, users, uplift, seed) for uplift in (0.0, UPLIFT))
    wrong = [
        {"metric": title, **{test: float(np.isfinite(none[name][test]).mean()) for test in none[name]}}
        for title, name in METRICS.items()
    ]
    right = [
        {
            "metric": title,
            **{f"day_{day}": float((real[name]["better"] <= day).mean()) for day in (7, 14, 21, 30)},
            "median_day": _median(real[name]["better"]),
            "once": float(np.isfinite(real[name]["once"]).mean()),
        }
        for title, name in METRICS.items()
    ]
    return wrong, right


def mismatch_rows(experiments: int, users: int, seed: int) -> list[dict[str, Any]]:
    """Sizes of arms looked at daily: alarms where all is well, and where one arm loses some of its users."""
    rows = []
    for lost in (0.0, 0.02, 0.05, 0.1):
        random = np.random.default_rng([seed, int(1e4 * lost)])
        arrived = random.binomial(users // DAYS, 0.5, (experiments, DAYS))
        kept = random.binomial(arrived, 1 - lost).cumsum(axis=1)
        others = (users // DAYS - arrived).cumsum(axis=1)
        pairs = np.stack([kept, others], axis=-1).reshape(-1, 2).tolist()
        values = np.array([p_value(pair, (0.5, 0.5)) for pair in pairs]).reshape(kept.shape)
        alarmed = values < ALARM
        days = np.where(alarmed.any(axis=1), alarmed.argmax(axis=1) + 1.0, math.inf)
        fixed = np.abs(kept - others) / np.sqrt(kept + others) > PEEKED
        rows.append(
            {
                "lost": lost,
                "alarms": float(alarmed.any(axis=1).mean()),
                "at_alpha": float((values < ALPHA).any(axis=1).mean()),
                "peeked": float(fixed.any(axis=1).mean()),
                "median_day": _median(days),
            }
        )
    return rows


LIMITS = Canary(arm="new", max_error_rate=0.01, max_latency_ms=200, max_slowdown=1.2, min_agreement=0.8)
#: What is wrong with a canary. Good: one request in a thousand fails, as fast as the control, agreement .95.
CANARIES: Mapping[str, Mapping[str, float]] = {
    "nothing": {},
    "errors at the limit, 1 %": {"errors": 0.01},
    "errors 2 %": {"errors": 0.02},
    "errors 5 %": {"errors": 0.05},
    "errors 20 %": {"errors": 0.2},
    "1.5 times as slow": {"slower": 1.5},
    "3 times as slow": {"slower": 3.0},
    "agreement .7": {"agreement": 0.7},
    "agreement .5": {"agreement": 0.5},
}
CANARY_REQUESTS = 5_000


def canary_rows(replications: int, seed: int) -> list[dict[str, Any]]:
    """How many requests of a canary it takes until it is rolled back, or ready."""
    rows = []
    for number, (name, wrong) in enumerate(CANARIES.items()):
        random = np.random.default_rng([seed, number])
        ends = [_end(random, wrong) for _ in range(replications)]
        row: dict[str, Any] = {"wrong": name}
        for state, key in ((State.ROLL_BACK, "rolled_back"), (State.PROMOTE_READY, "ready")):
            at = np.array([float(end.get(state, math.inf)) for end in ends])
            row |= {key: float(np.isfinite(at).mean()), f"{key}_requests": _median(at)}
        rows.append(row)
    return rows


def _end(random: np.random.Generator, wrong: Mapping[str, float]) -> dict[State, int]:
    """The request of the first decision of each kind, one request a second."""
    monitor, first = CanaryMonitor(LIMITS, 0.0), dict[State, int]()
    for number, (control, seen) in enumerate(_requests(random, wrong), 1):
        monitor.observe(control, float(number))
        state = monitor.observe(seen, float(number)).state
        first.setdefault(state, number)
        if state is State.ROLL_BACK:
            break
    return first


def _requests(random: np.random.Generator, wrong: Mapping[str, float]) -> Iterator[tuple[Observation, Observation]]:
    latencies = np.exp(random.normal(3, 0.4, (CANARY_REQUESTS, 2))) * [1.0, wrong.get("slower", 1.0)]
    failed = random.random(CANARY_REQUESTS) < wrong.get("errors", 0.001)
    agreement = random.binomial(10, wrong.get("agreement", 0.95), CANARY_REQUESTS) / 10
    for (control, ours), error, share in zip(latencies.tolist(), failed.tolist(), agreement.tolist(), strict=True):
        yield Observation(False, control), Observation(True, ours, error, share)


def _or_never(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Medians that do not exist, in words."""
    return [{**row, **{key: "-" if row[key] is None else f"{row[key]:,.0f}" for key in keys}} for row in rows]


def _claims(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    about = (
        f"{config['experiments']:,} simulated experiments each, {config['users']:,} users, {config['days']} days with"
        f" a look every day, alpha {config['alpha']:.0%}. No difference between the arms: the share of experiments in"
        " which one is ever claimed must stay below alpha. Beside it a t-test that is looked at daily, and one that is"
        " looked at once, on the last day."
    )
    found = (
        f"Lists that get {config['uplift']:.0%} more clicks: the share of experiments in which that is found by a day,"
        " and the day by which it is in half of them; beside it a t-test on the last day alone."
    )
    wrong = "metric={metric} | different at any look={different:.1%} | t-test, daily={peeked:.1%} | once={once:.1%}"
    days = " | ".join(f"day {day}={{day_{day}:.1%}}" for day in (7, 14, 21, 30))
    right = f"metric={{metric}} | {days} | median day={{median_day}} | once={{once:.1%}}"
    rows = _or_never(result["difference"], "median_day")
    return [about, table_of(result["no_difference"], wrong), found, table_of(rows, right)]


def _alarms(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    arms = (
        f"The arms' sizes, looked at daily, where one arm loses some of its users: alarms (p below {config['alarm']}),"
        f" and p below {config['alpha']:.0%} beside a fixed test at that level."
    )
    canary = (
        f"A canary beside its control, {config['canary_replications']} of each kind, at most"
        f" {config['canary_requests']:,} requests: the share that is rolled back, or ever called ready, and the median"
        " request of it."
    )
    sizes = "lost={lost:.0%} | alarms={alarms:.1%} | median day={median_day}"
    sizes += " | p below alpha={at_alpha:.1%} | fixed, daily={peeked:.1%}"
    ends = "wrong with it={wrong} | rolled back={rolled_back:.0%} | after={rolled_back_requests}"
    ends += " | ready={ready:.0%} | after={ready_requests}"
    lost = _or_never(result["mismatch"], "median_day")
    ended = _or_never(result["canary"], "rolled_back_requests", "ready_requests")
    return [arms, table_of(lost, sizes), canary, table_of(ended, ends)]


def _section(run: StoredRun) -> str:
    asked = run["config"], run["result"]
    return paragraphs("### Do experiments keep their word?", *_claims(*asked), *_alarms(*asked))


def _measure(options: Namespace) -> list[Run]:
    replications = max(options.experiments // 10, 1)
    config = {
        "experiments": options.experiments,
        "users": options.users,
        "days": DAYS,
        "alpha": ALPHA,
        "uplift": UPLIFT,
        "alarm": ALARM,
        "canary_replications": replications,
        "canary_requests": CANARY_REQUESTS,
        "canary_alpha": LIMITS.alpha,
    }
    wrong, right = claim_rows(options.experiments, options.users, options.seed)
    result = {
        "no_difference": wrong,
        "difference": right,
        "mismatch": mismatch_rows(options.experiments, options.users, options.seed),
        "canary": canary_rows(replications, options.seed),
    }
    return [Run(config, result, options.seed)]


BENCHMARK = Benchmark(
    __doc__,
    "5 min, no bundle",
    {"--experiments": EXPERIMENTS, "--users": USERS, "--seed": 0},
    _measure,
    of_runs(_section, "ab_tests"),
)
