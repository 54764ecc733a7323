"""Ways to spend less than the deepest depth everywhere, judged against the convex hull of the static depths.

A policy has a curve: what each of its settings gives against what it costs. What it gives is quality, NDCG@10, or
agreement, the share of the deepest depth's top 10. Sending requests to two depths at random reaches every point between
them, so a policy that knows nothing lies on the hull of the static depths, and only what lies above it says that the
policy knows which requests need more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.certification.hull import area_above
from fathom.exporter.certification.learners import PRICES, learned_members, relative_costs
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.features import Features
from fathom.selector.learned import LossModel, cross_fitted
from fathom.selector.routing import least_total, one_hot
from fathom.selector.schema import Floats

STEPS = 40
RESAMPLES = 1000


@dataclass(frozen=True)
class Policy:
    """The probabilities (n, depths) that each setting of a policy gives the depths of n requests."""

    name: str
    chances: Sequence[Floats]


@dataclass(frozen=True)
class Curve:
    """One policy on n requests: ``value`` and ``cost`` (n, settings) of each request in expectation.

    ``shares`` (settings, depths): of the requests that end at each depth. Costs are milliseconds.
    """

    name: str
    value: Floats
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


def policies(known: Outcomes, judged: Outcomes, costs: Costs) -> list[Policy]:
    """Every policy on ``judged``; what is learned is learned from the agreement of ``known``.

    ``length`` expects as much loss of all requests, so nothing but what a history of their length costs has a say: what
    a learned policy is worth beyond that, it knows of the request.
    """
    spent = relative_costs(known, costs).of(judged.features)
    alike = np.tile(1 - known.agreement[:, :-1].mean(0), (len(judged), 1))
    by_length = [one_hot(least_total(alike, spent, price), len(judged.depths)) for price in PRICES]
    learned = learned_members(known, costs, STEPS)
    return [Policy("length", by_length), Policy("learned", [each.probabilities(judged.features) for each in learned])]


def static_curve(value: Floats, judged: Outcomes, costs: Costs) -> Curve:
    """Every request at one depth, for each depth; ``value`` (n, D): what each depth gives each request."""
    return Curve("static", value, costs.of(judged.lengths), np.eye(len(judged.depths)))


def curve_of(policy: Policy, value: Floats, judged: Outcomes, costs: Costs) -> Curve:
    """What the settings of a policy give and cost."""
    ms, chances = costs.of(judged.lengths), policy.chances
    gives = np.column_stack([(chance * value).sum(1) for chance in chances])
    cost = np.column_stack([(chance * ms).sum(1) for chance in chances])
    return Curve(policy.name, gives, cost, np.array([chance.mean(0) for chance in chances]))


def hindsight(value: Floats, judged: Outcomes, costs: Costs) -> Policy:
    """The depth that turns out best, cost considered: knows the answer, so nothing can reach it."""
    ms = costs.of(judged.lengths)
    relative = ms / ms[:, -1:].mean()
    return Policy("hindsight", [one_hot((price * relative - value).argmin(1), ms.shape[1]) for price in prices()])


def evaluate_policy(curve: Curve, static: Curve, *, seed: int = 0, resamples: int = RESAMPLES) -> PolicyResult:
    """Resamples users, and with them the hull."""
    count = len(static.value)
    random = np.random.default_rng(seed)

    def area(weights: Floats) -> float:
        return area_above(*(weights @ part for part in (curve.cost, curve.value, static.cost, static.value)))

    drawn = [area(random.multinomial(count, np.full(count, 1 / count)) / count) for _ in range(resamples)]
    everyone = np.full(count, 1 / count)
    points = list(zip((everyone @ curve.cost).tolist(), (everyone @ curve.value).tolist(), strict=True))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return PolicyResult(curve.name, points, curve.shares.tolist(), area(everyone), low, high)


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
    """Pearson's r of each feature with the shallowest depth's disagreement, and its 95 % interval (Fisher's z)."""
    loss = 1 - outcomes.agreement[:, 0]
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
    """R^2 of the cross-fitted disagreement of the shallowest depth: below 0, a constant predicts better."""
    losses = 1 - known.agreement[:, :1]
    error = (losses - cross_fitted(LossModel.fit, known.features, losses, known.users))[:, 0]
    spread = losses[:, 0] - losses[:, 0].mean()
    return 1 - float(error @ error / (spread @ spread)) if spread.any() else 0.0


def prices() -> Floats:
    """From free computation to more than any answer is worth, per request at the deepest depth; (m,)."""
    return np.concatenate([[0.0], np.geomspace(1e-5, 3.0, STEPS)])
