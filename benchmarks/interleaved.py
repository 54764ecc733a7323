"""Times several things in turn, so that what else a machine does falls on all of them alike."""

from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def interleaved(calls: Mapping[Key, Callable[[], object]], rounds: int, *, warm_up: int = 1) -> dict[Key, float]:
    """Median seconds of each, all of them in a new random order in every round, after ``warm_up`` that do not count."""
    rng, keys = np.random.default_rng(0), list(calls)
    spent = np.empty((len(keys), rounds))
    for turn in range(-warm_up, rounds):
        for number in rng.permutation(len(keys)):
            begin = perf_counter()
            calls[keys[number]]()
            if turn >= 0:
                spent[number, turn] = perf_counter() - begin
    return dict(zip(keys, np.median(spent, axis=1).tolist(), strict=True))
