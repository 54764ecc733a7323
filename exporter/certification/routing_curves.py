"""Ways to spend less than the deepest depth everywhere, judged against the convex hull of the static depths.

A policy has a curve: the quality of each of its settings against what it costs. Sending requests to two depths at
random reaches every point between them, so a policy that knows nothing lies on the hull of the static depths, and only
what lies above it says that the policy knows which requests need more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.certification.families import cascade_members, learned_members
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.features import Features
from fathom.selector.learned import LossModel, cross_fitted
from fathom.selector.routing import one_hot, thresholds
from fathom.selector.schema import Floats

STEPS = 40
RESAMPLES = 1000
#: Points of the cost axis on which areas are taken.
GRID = 201


@dataclass(frozen=True)
class Curve:
    """One policy on n requests: ``quality`` and ``cost`` (n, settings) of each request in expectation.

    ``shares`` (settings, depths): of the requests that end at each depth. Costs are milliseconds.
    """

    name: str
    quality: Floats
    cost: Floats
    shares: Floats


@dataclass(frozen=True)
class PolicyResult:
    """A curve against the hull: mean distance over the hull's range of costs, with a 95 % interval over users."""

    name: str
    points: list[tuple[float, float]]
    shares: list[list[float]]
    area: float
    low: float
    high: float


def static_curve(outcomes: Outcomes, costs: Costs) -> Curve:
    """Every request at one depth, for each depth."""
    return Curve("static", outcomes.quality, costs.of(outcomes.lengths), np.eye(len(outcomes.depths)))


def policies(known: Outcomes, judged: Outcomes, costs: Costs) -> list[Curve]:
    """The curves of every policy on ``judged``; what is learned is learned from ``known``."""
    length = judged.features[:, Features._fields.index("length")]
    levels = np.unique(np.quantile(length, np.linspace(0, 1, STEPS + 1)))
    ends = len(judged.depths) - 1
    by_length = [one_hot(np.where(length <= level, 0, ends), ends + 1) for level in levels]
    rules = [rule.probabilities(judged.routing_inputs) for rule in thresholds(judged.depths, STEPS)]
    learned = [each.probabilities(judged.routing_inputs) for each in learned_members([known], costs)]
    exits = tuple(filter(None, judged.depths))
    gated = cascade_members([known.at_depths(exits)], costs.at_depths(exits))
    counted = ((0, 0), (len(judged.depths) - len(exits), 0))  # depth 0 is no exit on the way
    inputs = judged.at_depths(exits).routing_inputs
    cascaded = [np.pad(each.probabilities(inputs), counted) for each in gated]
    return [
        routed("length", by_length, judged, costs),
        routed("rule", rules, judged, costs),
        routed("learned", learned, judged, costs),
        routed("cascade", cascaded, judged, costs, walked=True),
        hindsight(judged, costs),
    ]


def hindsight(judged: Outcomes, costs: Costs) -> Curve:
    """The depth that turns out best, cost considered: knows the answer, so nothing can reach it."""
    ms = costs.of(judged.lengths)
    relative = ms / ms[:, -1:].mean()
    chances = [one_hot((price * relative - judged.quality).argmin(1), ms.shape[1]) for price in prices()]
    return routed("hindsight", chances, judged, costs)


def evaluate_policy(curve: Curve, static: Curve, *, seed: int = 0, resamples: int = RESAMPLES) -> PolicyResult:
    """Resamples users, and with them the hull."""
    count = len(static.quality)
    random = np.random.default_rng(seed)

    def area(weights: Floats) -> float:
        return _area(*(weights @ part for part in (curve.cost, curve.quality, static.cost, static.quality)))

    drawn = [area(random.multinomial(count, np.full(count, 1 / count)) / count) for _ in range(resamples)]
    everyone = np.full(count, 1 / count)
    points = list(zip((everyone @ curve.cost).tolist(), (everyone @ curve.quality).tolist(), strict=True))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return PolicyResult(curve.name, points, curve.shares.tolist(), area(everyone), low, high)


def hull(cost: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """Cost and quality of the corners (m,) of the upper convex hull of points (n,), by ascending cost."""
    corners: list[int] = []
    for i in np.lexsort((-quality, cost)):
        while len(corners) > 1 and _left_of(cost, quality, corners[-2], corners[-1], int(i)):
            corners.pop()
        corners.append(int(i))
    return cost[corners], quality[corners]


def needs_more(known: Outcomes, judged: Outcomes, *, shallow: int, deep: int, threshold: float) -> Mapping[str, float]:
    """How well complexity, and a learned model, tell requests that ``deep`` answers better than ``shallow``.

    ``share``: of such requests. AUC among all requests; accuracy of complexity >= ``threshold``, of the best threshold
    on ``known``, and of always giving the commoner answer.
    """
    low, high = judged.depths.index(shallow), judged.depths.index(deep)
    wanted = judged.quality[:, high] > judged.quality[:, low]
    before = known.quality[:, high] > known.quality[:, low]
    model = LossModel.fit(known.features, before[:, None].astype(np.float64))
    levels = np.append(np.unique(np.quantile(known.complexity, np.linspace(0, 1, 101))), np.inf)
    best = levels[int(np.argmax([np.mean((known.complexity >= level) == before) for level in levels]))]
    return {
        "share": float(wanted.mean()),
        "auc_complexity": auc(judged.complexity, wanted),
        "auc_learned": auc(model.predict(judged.features)[:, 0], wanted),
        "accuracy_threshold": float(np.mean((judged.complexity >= threshold) == wanted)),
        "accuracy_best_threshold": float(np.mean((judged.complexity >= best) == wanted)),
        "accuracy_constant": float(max(wanted.mean(), 1 - wanted.mean())),
    }


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of a score (n,) for what is ``positive`` (n,); ties count half."""
    values, places = np.unique(score, return_inverse=True)
    of_value = np.bincount(places, minlength=len(values))
    ranks = (np.cumsum(of_value) - (of_value - 1) / 2)[places]
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return 0.5
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def feature_correlations(outcomes: Outcomes) -> Mapping[str, tuple[float, float, float]]:
    """Pearson's r of each feature with what the shallowest depth loses, and its 95 % interval (Fisher's z)."""
    loss = outcomes.quality[:, -1] - outcomes.quality[:, 0]
    found = {}
    for name, column in zip(Features._fields, outcomes.features.T, strict=True):
        known = ~np.isnan(column)
        # A feature without any variance, or known of hardly anyone, tells nothing.
        if known.sum() < 10 or column[known].std() < 1e-12 or loss[known].std() < 1e-12:
            continue
        z = np.arctanh(np.corrcoef(column[known], loss[known])[0, 1])
        half = 1.96 / np.sqrt(known.sum() - 3)
        r, low, high = np.tanh([z, z - half, z + half]).tolist()
        found[name] = (r, low, high)
    return found


def explained(known: Outcomes) -> float:
    """R^2 of the cross-fitted loss of the shallowest depth: below 0, a constant predicts better; 0 without losses."""
    losses = known.quality[:, -1:] - known.quality[:, :-1]
    error = (losses - cross_fitted(known.features, losses))[:, 0]
    spread = losses[:, 0] - losses[:, 0].mean()
    return 1 - float(error @ error / (spread @ spread)) if spread.any() else 0.0


def routed(name: str, chances: Sequence[Floats], judged: Outcomes, costs: Costs, *, walked: bool = False) -> Curve:
    """A curve from the probabilities (n, depths) that each of a policy's settings gives the depths."""
    ms = costs.of(judged.lengths, walked=walked)
    quality = np.column_stack([(chance * judged.quality).sum(1) for chance in chances])
    cost = np.column_stack([(chance * ms).sum(1) for chance in chances])
    return Curve(name, quality, cost, np.array([chance.mean(0) for chance in chances]))


def prices() -> Floats:
    """From free computation to more than any answer is worth, in NDCG@10 per request at the deepest depth; (m,)."""
    return np.concatenate([[0.0], np.geomspace(1e-5, 3.0, STEPS)])


def _area(cost: Floats, quality: Floats, static_cost: Floats, static_quality: Floats) -> float:
    """Mean height of a curve above the hull; the curve begins and ends as the hull does."""
    corners, heights = hull(static_cost, static_quality)
    grid = np.linspace(corners[0], corners[-1], GRID)
    order = np.argsort(np.r_[corners[0], cost, corners[-1]], kind="stable")
    x, y = np.r_[corners[0], cost, corners[-1]][order], np.r_[heights[0], quality, heights[-1]][order]
    return float((np.interp(grid, x, y) - np.interp(grid, corners, heights)).mean())


def _left_of(x: Floats, y: Floats, a: int, b: int, c: int) -> bool:
    """Whether corner b lies on or below the line from a to c."""
    return bool((x[b] - x[a]) * (y[c] - y[a]) >= (x[c] - x[a]) * (y[b] - y[a]))
