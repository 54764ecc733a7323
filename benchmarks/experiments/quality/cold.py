"""Quality by how much is known of the right answer: cases grouped by the training events of their target item."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.training.metrics import Floats, interval, ndcg, paired_difference
from fathom.training.splits import Split

#: Name of a group -> fewest and most training events of the target item.
GROUPS: dict[str, tuple[float, float]] = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, np.inf)}
CUTOFF = 10


def cold_groups(split: Split, n_items: int) -> dict[str, NDArray[np.bool_]]:
    """Masks over the test cases, bool (cases,), by the training events of the target: "all", then GROUPS."""
    events = np.bincount(split.train.items, minlength=n_items)[split.test.targets]
    groups = {name: (fewest <= events) & (events <= most) for name, (fewest, most) in GROUPS.items()}
    return {"all": np.ones(len(split.test), dtype=np.bool_), **groups}


def by_group(
    places: Mapping[str, Floats], groups: Mapping[str, NDArray[np.bool_]], *, reference: str
) -> dict[str, dict[str, Any]]:
    """NDCG@10 of each system in each group, for JSON.

    places: system -> place of each case's target from 1, float64 (cases,); reference: the system the others are
    compared with. Returns group -> {"cases": n, "systems": {system: {"ndcg@10": interval, "difference": paired
    interval to the reference}}}; a group without a case has no systems.
    """
    gains = {name: ndcg(system, CUTOFF) for name, system in places.items()}
    found = {}
    for group, chosen in groups.items():
        systems = {
            name: {
                f"ndcg@{CUTOFF}": interval(gain[chosen]).as_dict(),
                "difference": paired_difference(gain[chosen], gains[reference][chosen]).as_dict(),
            }
            for name, gain in gains.items()
            if chosen.any()
        }
        found[group] = {"cases": int(chosen.sum()), "systems": systems}
    return found
