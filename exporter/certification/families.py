"""Families of routings, in sequences from the safest to the cheapest, and who may judge what was learned."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.bundle.teachers import are_teachers
from fathom.exporter.certification.learners import learned_members
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.routing import Routing, mixed
from fathom.selector.schema import Floats

Family = Literal["mixture", "learned"]
FAMILIES: tuple[Family, ...] = get_args(Family)

#: Steps of a family between two neighbouring depths, or in all.
STEPS = 20


class Members(NamedTuple):
    """The routings of a family, in sequences that each go from the safest to the cheapest, and who may judge them.

    ``weights`` (s,), ``transitions`` (s, s): of the sequences, see ``graphical``. ``judges`` (n,): rows of the test.
    """

    sequences: list[Sequence[Routing]]
    weights: Floats
    transitions: Floats
    judges: NDArray[np.bool_]


def family_members(family: Family, known: Outcomes, test: Outcomes, costs: Costs, *, eps: float) -> Members:
    """A family for the depths of ``test``. Mixtures that cannot lose ``eps``, whatever a depth loses, are left out.

    ``known``: requests of teachers, who judge nothing that is learned of them. Raises DataError for too few requests to
    learn from.
    """
    if family == "mixture":
        return Members(*mixtures(test.depths, eps), np.ones(len(test), dtype=np.bool_))
    routings = learned_members(known, costs, 3 * STEPS)
    return Members([routings], np.ones(1), np.zeros((1, 1)), ~are_teachers(test.digests))


def mixtures(depths: tuple[int, ...], eps: float) -> tuple[list[Sequence[Routing]], Floats, Floats]:
    """Sequences of mixtures, their weights and transitions.

    From the deepest depth straight to each other one, all with the same share of the level; and from each of these to
    the next shallower one, where the level goes once a depth is reached. At the end it goes to the other straight ones.
    """
    deepest, shallower = depths[-1], depths[-2::-1]
    sequences: list[Sequence[Routing]] = [
        [each for each in mixed(depths, deepest, depth, STEPS) if each.shares[-1] < 1 - eps - 1e-9]
        for depth in shallower
    ]
    sequences += [mixed(depths, deep, shallow, STEPS) for deep, shallow in pairwise(shallower)]
    straight, size = len(shallower), len(sequences)
    weights, transitions = np.zeros(size), np.zeros((size, size))
    weights[:straight] = 1 / straight
    # The sequence from a depth to the next shallower one comes so many places after the one that leads to the depth.
    for reached in range(straight - 1):
        transitions[reached, straight + reached] = 1.0
        if reached:
            transitions[straight + reached - 1, straight + reached] = 1.0
    for last in {straight - 1, size - 1}:
        transitions[last, : straight - 1] = 1 / max(straight - 1, 1)
    return sequences, weights, transitions
