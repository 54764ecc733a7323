"""Which of many hypotheses are rejected, any of them wrongly with probability at most one level: a graphical procedure.

Hypotheses stand in sequences, and each sequence holds a share of the level. Its first hypothesis that is not rejected
yet is tested at that share; once rejected, the share goes to the next. A sequence that is rejected to its end passes
its share on, as ``transitions`` say. This is the procedure of Bretz, Maurer, Brannath and Posch (Statistics in
Medicine 28, 2009) for a graph in which a hypothesis passes its whole level to the next of its sequence, and the last
one to the first ones of other sequences, or where those are rejected to what they pass theirs to.

Why it is wrong with probability at most the level: when a true hypothesis is rejected for the first time, all that was
rejected before was false. Shares only grow as more is rejected, so it is then tested at no more than the share which
it has once every false hypothesis is rejected, and these shares sum to at most 1. With p-values, for which more level
never undoes a rejection, the chance that any true hypothesis is below its share is at most the sum. Hypotheses may
depend on each other in any way, and one that stands in two sequences only counts twice.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from fathom.selector.schema import Floats

Hypothesis = TypeVar("Hypothesis")


def rejected(
    sequences: Sequence[Sequence[Hypothesis]],
    evidence: Callable[[Hypothesis], float],
    *,
    weights: Floats,
    transitions: Floats,
    level: float,
) -> list[int]:
    """How many hypotheses of each sequence are rejected, from its first on.

    ``evidence``: that a hypothesis is false; where it is true, log(1 / a) or more with probability at most a, for every
    a. It is asked only of hypotheses that are tested. ``weights`` (s,): each sequence's share of the level, at most 1
    together. ``transitions`` (s, s): what each passes to each other one, at most 1 per row, the diagonal 0.
    """

    @cache
    def shown(sequence: int, place: int) -> float:
        return evidence(sequences[sequence][place])

    def count(sequence: int, begun: int) -> int:
        share, place = level * weights[sequence], begun
        while share > 0 and place < len(sequences[sequence]) and shown(sequence, place) >= math.log(1 / share):
            place += 1
        return place

    counts = [0] * len(sequences)
    finished: set[int] = set()
    while True:
        counts = [count(each, begun) for each, begun in enumerate(counts)]
        ended = [each for each, count in enumerate(counts) if count == len(sequences[each]) and each not in finished]
        if not ended:
            return counts
        finished.add(ended[0])
        weights, transitions = _without(ended[0], weights, transitions)


def _without(ended: int, weights: Floats, transitions: Floats) -> tuple[Floats, Floats]:
    """The graph once a sequence has passed on its share: what would have gone to it goes where its share went."""
    on, into = transitions[ended], transitions[:, ended]
    weights = weights + weights[ended] * on
    # What comes back to where it left from counts as passed on at once, for ever: a geometric series.
    returned = 1 - into * on
    through = transitions + np.outer(into, on)
    transitions = np.divide(through, returned[:, None], out=np.zeros_like(through), where=returned[:, None] > 1e-12)
    np.fill_diagonal(transitions, 0.0)
    weights[ended], transitions[ended], transitions[:, ended] = 0.0, 0.0, 0.0
    return weights, transitions
