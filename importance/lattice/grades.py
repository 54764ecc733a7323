"""Grades of importance methods against a lattice: how well each orders the layers, and what choosing by it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fathom.importance.lattice.lattice import Lattice
from fathom.importance.lattice.values import best_subsets, mask_of, sampled_shapley_values, shapley_values
from fathom.importance.layer_ranking import Grade
from fathom.importance.statistics import CONFIDENCE, RESAMPLES, Floats, kendall_tau, kendall_taus, order_by

#: The name under which the consensus is graded beside the methods.
CONSENSUS = "consensus"


@dataclass(frozen=True)
class Truth:
    """What a lattice says about the layers: the Shapley value of each for each user, and the utility of each subset."""

    values: Floats
    utilities: Floats | None

    @classmethod
    def of(cls, lattice: Lattice, metric: str = "loss") -> Self:
        """The truth by one metric; a sampled lattice has no utilities of every subset, and so no regret."""
        if not lattice.is_whole:
            return cls(sampled_shapley_values(lattice, metric), None)
        return cls(shapley_values(lattice.utilities(metric).astype(np.float64)), lattice.mean(metric))


def grade(rows: Floats, truth: Truth, sizes: Sequence[int], *, seed: int, resamples: int = RESAMPLES) -> Grade:
    """Grade a method by its rows (users or folds, layers), see ImportanceMethod.

    The bootstrap draws users; a method with a row for each user of the truth is drawn with the same ones.
    """
    random = np.random.default_rng(seed)
    users = len(truth.values)
    found, true = [], []
    for _ in range(resamples):
        drawn = random.integers(users, size=users)
        own = drawn if len(rows) == users else random.integers(len(rows), size=len(rows))
        found.append(rows[own].mean(0))
        true.append(truth.values[drawn].mean(0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(kendall_taus(np.array(found), np.array(true)), [tail, 1 - tail])
    scores = rows.mean(0)
    tau = kendall_tau(scores, truth.values.mean(0))
    return Grade(tau, float(low), float(high), regret(scores, truth, sizes))


def regret(scores: Floats, truth: Truth, sizes: Sequence[int]) -> dict[int, float]:
    """What the top layers by these scores (layers,) lack against the best subset of each size, as in Grade."""
    if truth.utilities is None:
        return {}
    order, best = order_by(scores), best_subsets(truth.utilities)
    chosen = {size: truth.utilities[mask_of(order[:size])] for size in sizes}
    return {size: float(truth.utilities[best[size]] - value) for size, value in chosen.items()}
