"""The context of a request, such as country and device: how user vectors move with it (``moves.py``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.training.dataset import Contexts
from fathom.training.metrics import Interval
from fathom.training.moves import move


@dataclass(frozen=True, eq=False)
class Context:
    """How user vectors move, at every depth alike.

    values: feature -> its values that change anything; changes: float32 (all of these values, 2, width), what a vector
    is scaled by besides 1, and what is then added, summed over the features; gain: what that adds to NDCG@10 on
    validation items, the mean over depths.
    """

    values: Mapping[str, tuple[str, ...]]
    changes: NDArray[np.float32]
    gain: Interval

    def moved(self, users: NDArray[np.float32], asked: Contexts | None) -> NDArray[np.float32]:
        """User vectors (n, width) for requests of these contexts (n,); None: unknown of all."""
        if asked is None:
            return users
        return move(users, change_of(rows_of(asked, self.values), self.changes.reshape(len(self.changes), -1)))


def rows_of(contexts: Contexts, values: Mapping[str, tuple[str, ...]]) -> NDArray[np.int64]:
    """The places of contexts (n,) among all these values of features, from 1; 0 for any other: int64 (n, features)."""
    rows, first = np.zeros((len(contexts.codes), len(values)), np.int64), 1
    for column, (feature, known) in enumerate(values.items()):
        places = {value: place for place, value in enumerate(known, first)}
        first += len(known)
        if feature in contexts.values:
            lookup = np.array([0, *(places.get(value, 0) for value in contexts.values[feature])])
            rows[:, column] = lookup[contexts.codes[:, [*contexts.values].index(feature)]]
    return rows


def change_of(rows: Any, changes: Any) -> Any:
    """What ``rows_of`` (..., features) change together: (..., 2 width) of (values, 2 width); arrays or tensors."""
    return (changes[rows - 1] * (rows > 0)[..., None]).sum(-2)
