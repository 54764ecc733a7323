"""Learns which requests lose agreement at which depth, with the learner that does most for users it has not seen.

Learners are compared by the area above the hull of static depths that their predictions, cross-fitted over users,
reach at equal measured cost. The simplest whose area is within one standard error of the best one's is used.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fathom.errors import DataError
from fathom.exporter.certification.hull import area_above
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.learned import Fit, LossModel, cross_fitted
from fathom.selector.net import NetModel
from fathom.selector.routing import DepthCosts, Learned, learned_routings, least_total
from fathom.selector.schema import Floats
from fathom.selector.tables import TableModel

Learner = type[LossModel] | type[TableModel] | type[NetModel]
Places = NDArray[np.intp]

#: From the simplest on.
LEARNERS: tuple[Learner, ...] = (LossModel, TableModel, NetModel)
#: Requests that something is learned from, at least.
FEWEST = 50
#: In agreement lost per cost of the deepest depth.
PRICES: tuple[float, ...] = (0.0, *np.geomspace(1e-3, 10, 60).tolist())
RESAMPLES = 100


def learned_members(known: Outcomes, costs: Costs, steps: int) -> list[Learned]:
    """Learned routings, from the safest to the cheapest; raises DataError for too few requests."""
    relative, losses = relative_costs(known, costs), 1 - known.agreement[:, :-1]
    spent = relative.of(known.features)

    def chosen(fit: Fit) -> list[Places]:
        told = cross_fitted(fit, known.features, losses, known.users)
        return [least_total(told, spent, price) for price in PRICES]

    model = best_learner(chosen, known, costs).fit(known.features, losses, known.users)
    return learned_routings(model, costs.depths, relative, known.features, steps)


def best_learner(chosen: Callable[[Fit], Sequence[Places]], known: Outcomes, costs: Costs) -> Learner:
    """The simplest learner whose area is within one standard error, over users, of the largest.

    ``chosen``: where requests go (n,), as columns of ``costs``, for several prices, by what a learner predicts of users
    that it has not learned from.
    """
    areas = np.array([_areas(chosen(learner.fit), known, costs) for learner in LEARNERS])
    behind = areas[areas[:, 0].argmax()] - areas
    enough = behind[:, 0] <= behind[:, 1:].std(axis=1)
    return LEARNERS[int(enough.argmax())]


def _areas(places: Sequence[Places], known: Outcomes, costs: Costs) -> Floats:
    """Area above the hull in agreement: of all requests, and of RESAMPLES that are drawn by user, always the same."""
    agreement, ms = known.agreement, costs.of(known.lengths)
    rows = np.arange(len(known))
    curve = [np.column_stack([table[rows, place] for place in places]) for table in (ms, agreement)]
    users, user = np.unique(known.users, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(users)), dtype=np.int64), drawn])[:, user]
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.array([area_above(*(weight @ part for part in (*curve, ms, agreement))) for weight in weights])


def relative_costs(known: Outcomes, costs: Costs) -> DepthCosts:
    """The straight line, for each depth, through what requests cost by their length; the deepest's mean is 1.

    Raises DataError for too few requests to learn from.
    """
    if len(known) < FEWEST:
        raise DataError(f"{len(known)} requests are too few to learn a routing from; use the mixture")
    ms, mean_length = costs.of(known.lengths), float(known.lengths.mean())
    relative, length = ms / ms[:, -1].mean(), known.lengths - mean_length
    mean = relative.mean(0)
    # Neither part below 0, and no deeper depth below a shallower one, at any length.
    fixed = mean - length @ relative / max(length @ length, 1.0) * mean_length
    fixed = np.maximum.accumulate(np.clip(fixed, 0, mean))
    per_item = np.maximum.accumulate(np.maximum(mean - fixed, 0) / max(mean_length, 1.0))
    return DepthCosts(fixed.tolist(), per_item.tolist())
