"""Families of routings, each from the safest to the cheapest, and who may judge what was learned."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fathom.errors import DataError
from fathom.exporter.certification.outcomes import Costs, Outcomes, in_order
from fathom.selector.learned import LossModel
from fathom.selector.routing import (
    Cascade,
    Learned,
    Routing,
    RoutingInputs,
    gated,
    neighbours_mixed,
    priced,
    thresholds,
)
from fathom.selector.schema import Floats

Family = Literal["mixture", "rule", "learned", "cascade"]
FAMILIES: tuple[Family, ...] = get_args(Family)

#: Steps of a family between two neighbouring depths, or in all.
STEPS = 20
#: The share of users that a learned family learns from.
LEARNING = 1 / 3
#: Requests that something is learned from, at least.
FEWEST = 50


def family_members(
    family: Family, validation: Outcomes, test: Outcomes, copies: NDArray[np.bool_], costs: Costs
) -> tuple[Sequence[Routing], NDArray[np.bool_]]:
    """The routings of a family, and which rows of ``test`` may judge them, (n,).

    ``test`` and ``copies`` (n,): as ``in_order`` gives them. Raises DataError for too few requests to learn from.
    """
    if family in ("mixture", "rule"):
        make = neighbours_mixed if family == "mixture" else thresholds
        return make(test.depths, STEPS), np.ones(len(test), dtype=np.bool_)
    known, judges = _learning(validation, test, copies)
    return (learned_members if family == "learned" else cascade_members)(known, costs), judges


def learned_members(known: Sequence[Outcomes], costs: Costs) -> list[Learned]:
    """The family ``learned``, from requests whose answers are known; raises DataError for too few."""
    inputs, quality, relative = _together(known, costs, walked=False)
    model = LossModel.fit(inputs.features, quality[:, -1:] - quality[:, :-1])
    return priced(model, costs.depths, relative, inputs, 3 * STEPS)


def cascade_members(known: Sequence[Outcomes], costs: Costs) -> list[Cascade]:
    """The family ``cascade``, from requests whose answers are known; raises DataError for too few."""
    inputs, quality, relative = _together(known, costs, walked=True)
    gates = [
        LossModel.fit(inputs.at_exit(place), quality[:, place + 1 :] - quality[:, place, None])
        for place in range(len(costs.depths) - 1)
    ]
    return gated(gates, costs.depths, relative, inputs, 3 * STEPS)


def _together(known: Sequence[Outcomes], costs: Costs, *, walked: bool) -> tuple[RoutingInputs, Floats, list[float]]:
    """Requests, their quality (n, D), and the mean cost of each depth relative to the deepest."""
    inputs = RoutingInputs(
        *(np.concatenate(parts) for parts in zip(*(each.routing_inputs for each in known), strict=True))
    )
    if len(inputs.features) < FEWEST:
        raise DataError(f"{len(inputs.features)} requests are too few to learn a routing from; use the mixture")
    ms = np.concatenate([costs.of(each.lengths, walked=walked) for each in known])
    relative: list[float] = (ms.mean(0) / ms[:, -1].mean()).tolist()
    return inputs, np.concatenate([each.quality for each in known]), relative


def _learning(
    validation: Outcomes, test: Outcomes, copies: NDArray[np.bool_]
) -> tuple[list[Outcomes], NDArray[np.bool_]]:
    """What is learned from, and which rows of ``test`` may judge it: none whose case was learned from."""
    each_once = test.select(~copies)
    learners = each_once.select(np.arange(int(len(each_once) * LEARNING)))
    judges = ~_same_case(test, learners)
    # In an order of its own: cross-validation takes its folds by place.
    validation, _ = in_order(validation)
    seen = _same_case(validation, test.select(judges))
    return [learners, validation.select(~seen & np.isin(validation.users, learners.users))], judges


def _same_case(requests: Outcomes, others: Outcomes) -> NDArray[np.bool_]:
    """Which requests have the case of one of the others, (n,)."""
    known = set(others.digests.tolist())
    return np.array([digest in known for digest in requests.digests.tolist()], dtype=np.bool_)
