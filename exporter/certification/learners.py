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
from fathom.selector.routing import Cascade, Learned, first_stop, gated, least_total, priced
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
    """Routings that choose before any layer, from the safest to the cheapest; raises DataError for too few requests."""
    relative, losses = _relative(known, costs, walked=False), 1 - known.agreement[:, :-1]
    inputs = known.routing_inputs

    def chosen(fit: Fit) -> list[Places]:
        told = cross_fitted(fit, inputs.features, losses, known.users)
        return [least_total(told, relative, price) for price in PRICES]

    model = best_learner(chosen, known, costs, walked=False).fit(inputs.features, losses, known.users)
    return priced(model, costs.depths, relative, inputs, steps)


def cascade_members(known: Outcomes, costs: Costs, steps: int) -> list[Cascade]:
    """Routings that choose after each exit, from the safest to the cheapest; raises DataError for too few requests."""
    relative, inputs, agreement = _relative(known, costs, walked=True), known.routing_inputs, known.agreement
    places = range(len(costs.depths) - 1)
    rows = [inputs.at_exit(place) for place in places]
    gains = [agreement[:, place + 1 :] - agreement[:, place, None] for place in places]

    def chosen(fit: Fit) -> list[Places]:
        told = [cross_fitted(fit, seen, gain, known.users) for seen, gain in zip(rows, gains, strict=True)]
        told.append(np.empty((len(known), 0)))
        return [first_stop(told, relative, price) for price in PRICES]

    fit = best_learner(chosen, known, costs, walked=True).fit
    gates = [fit(seen, gain, known.users) for seen, gain in zip(rows, gains, strict=True)]
    return gated(gates, costs.depths, relative, inputs, steps)


def best_learner(chosen: Callable[[Fit], Sequence[Places]], known: Outcomes, costs: Costs, *, walked: bool) -> Learner:
    """The simplest learner whose area is within one standard error, over users, of the largest.

    ``chosen``: where requests go (n,), as columns of ``costs``, for several prices, by what a learner predicts of users
    that it has not learned from.
    """
    areas = np.array([_areas(chosen(learner.fit), known, costs, walked=walked) for learner in LEARNERS])
    behind = areas[areas[:, 0].argmax()] - areas
    enough = behind[:, 0] <= behind[:, 1:].std(axis=1)
    return LEARNERS[int(enough.argmax())]


def _areas(places: Sequence[Places], known: Outcomes, costs: Costs, *, walked: bool) -> Floats:
    """Area above the hull in agreement: of all requests, and of RESAMPLES that are drawn by user, always the same."""
    agreement, alone, ms = known.agreement, costs.of(known.lengths), costs.of(known.lengths, walked=walked)
    rows = np.arange(len(known))
    curve = [np.column_stack([table[rows, place] for place in places]) for table in (ms, agreement)]
    users, user = np.unique(known.users, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(users)), dtype=np.int64), drawn])[:, user]
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.array([area_above(*(weight @ part for part in (*curve, alone, agreement))) for weight in weights])


def _relative(known: Outcomes, costs: Costs, *, walked: bool) -> list[float]:
    """The mean cost of each depth relative to the deepest."""
    if len(known) < FEWEST:
        raise DataError(f"{len(known)} requests are too few to learn a routing from; use the mixture")
    ms = costs.of(known.lengths, walked=walked)
    relative: list[float] = (ms.mean(0) / ms[:, -1].mean()).tolist()
    return relative
