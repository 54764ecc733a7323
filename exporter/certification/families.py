"""Families of routings, each from the safest to the cheapest, and who may judge what was learned."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.bundle.teachers import are_teachers
from fathom.exporter.certification.learners import cascade_members, learned_members
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.routing import Routing, neighbours_mixed, thresholds

Family = Literal["mixture", "rule", "learned", "cascade"]
FAMILIES: tuple[Family, ...] = get_args(Family)

#: Steps of a family between two neighbouring depths, or in all.
STEPS = 20


def family_members(
    family: Family, known: Outcomes, test: Outcomes, costs: Costs
) -> tuple[Sequence[Routing], NDArray[np.bool_]]:
    """The routings of a family, and which rows of ``test`` may judge them, (n,).

    ``known``: requests of teachers, who judge nothing that is learned of them. Complexity has seen no test item, so
    everybody judges its quality. Raises DataError for too few requests to learn from.
    """
    everybody = np.ones(len(test), dtype=np.bool_)
    if family == "mixture":
        return neighbours_mixed(test.depths, STEPS), everybody
    if family == "rule":
        return thresholds(test.depths, known.complexity, STEPS), everybody
    learned = learned_members if family == "learned" else cascade_members
    return learned(known, costs, 3 * STEPS), ~are_teachers(test.digests)
