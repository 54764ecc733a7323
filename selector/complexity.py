"""One number for how complex a request is: the share of training histories that are simpler.

Each feature becomes its rank among the training histories (0 to 1). A request is complex when there is much to relate
(long history), nothing to copy (few repeats), little to lean on (unpopular items, events far apart in time) and many
interests at once (items unlike each other). The weighted mean of those ranks is ranked among the training histories
once more, so a threshold of 0.5 sends half of such traffic to the shallow depth, whatever the data set.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fathom.selector.features import BRIEF, Features
from fathom.selector.schema import STRICT, Finite, Share, validated

SCHEMA_VERSION: Literal[1] = 1
QUANTILES = 65

# The size is the feature's say; the sign says whether a large value makes a request complex (+) or simple (-).
WEIGHTS: Mapping[str, float] = {
    "length": 1.0,
    "distinct_ratio": 1.0,
    "popularity": -1.0,
    "recency": -1.0,
    "density": -1.0,
}


@dataclass(frozen=True, config=STRICT)
class Scale:
    """A rank between 0 and 1 for any value: linear between the training quantiles, constant outside them.

    ``values`` ascend strictly; a value that many training histories share has the middle of their ranks.
    """

    values: Annotated[tuple[Finite, ...], Field(min_length=1)]
    ranks: Annotated[tuple[Share, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.ranks):
            raise ValueError("values and ranks differ in length")
        if any(a >= b for a, b in pairwise(self.values)):
            raise ValueError("values do not ascend")
        if any(a > b for a, b in pairwise(self.ranks)):
            raise ValueError("ranks descend")

    @classmethod
    def fit(cls, sample: NDArray[np.float64]) -> "Scale":
        """The scale of a sample (n,), n >= 1, without NaN."""
        grid = np.linspace(0.0, 1.0, QUANTILES)
        quantiles = np.quantile(sample, grid)
        values = np.unique(quantiles)
        first = np.searchsorted(quantiles, values, side="left")
        last = np.searchsorted(quantiles, values, side="right") - 1
        return cls(tuple(values.tolist()), tuple(((grid[first] + grid[last]) / 2).tolist()))

    def rank(self, value: float) -> float:
        """The rank of a value; NaN, which is an unknown value, has 0.5."""
        if value != value:
            return 0.5
        values, ranks = self.values, self.ranks
        i = bisect_right(values, value)
        if i == 0:
            return ranks[0]
        if i == len(values):
            return ranks[-1]
        low, below = values[i - 1], ranks[i - 1]
        return below + (value - low) / (values[i] - low) * (ranks[i] - below)


@dataclass(frozen=True, config=STRICT)
class ComplexityModel:
    """Normalisation learned on training histories.

    ``weights`` and ``scales`` name the features that have a say, at least one; the rest of Features is not looked at.
    One that was never known in training has the scale None, and no say after all.
    """

    schema_version: Literal[1]
    weights: dict[str, Finite]
    scales: dict[str, Scale | None]
    combined: Scale
    histories: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        if not self.weights or not self.weights.keys() <= set(Features._fields):
            raise ValueError(f"weights must be for some of {', '.join(Features._fields)}")
        if self.weights.keys() != self.scales.keys():
            raise ValueError("weights and scales are for different features")

    @classmethod
    def fit(cls, features: ArrayLike, *, weights: Mapping[str, float] = WEIGHTS) -> "ComplexityModel":
        """Learn from rows of Features (histories, 11), NaN where unknown, what the features in ``weights`` are like.

        Raises ValueError for no rows, infinities, and weights that name no feature or something else.
        """
        rows = np.asarray(features, dtype=np.float64)
        names = Features._fields
        if rows.ndim != 2 or rows.shape[1] != len(names) or not len(rows) or np.isinf(rows).any():
            raise ValueError(f"features must be finite or NaN, (histories, {len(names)}), at least one history")
        columns = zip(names, rows.T, strict=True)
        known = {name: column[~np.isnan(column)] for name, column in columns if name in weights}
        scales = {name: Scale.fit(sample) if len(sample) else None for name, sample in known.items()}
        mixture = _Mixture.of(weights, scales)
        raw = np.array([mixture.mean_rank(row) for row in rows.tolist()])
        return cls(SCHEMA_VERSION, dict(weights), scales, Scale.fit(raw), len(rows))

    @cached_property
    def _mixture(self) -> "_Mixture":
        return _Mixture.of(self.weights, self.scales)

    @cached_property
    def is_brief(self) -> bool:
        """Whether ``measure_brief`` finds all that has a say."""
        return self.weights.keys() <= set(BRIEF)

    def score(self, features: Features) -> float:
        """Complexity of one request, 0 (simple) to 1 (complex)."""
        return self.combined.rank(self._mixture.mean_rank(features))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by ``from_json``."""
        form: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return form

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, where: str = "selector") -> "ComplexityModel":
        """Raises ArtefactError, in one line, for a newer schema, NaN, or anything that ``fit`` cannot have made."""
        remedy = "export the bundle again"
        return validated(_ADAPTER, value, kind="selector", where=where, newest=SCHEMA_VERSION, remedy=remedy)


_ADAPTER = TypeAdapter(ComplexityModel)


class _Mixture(NamedTuple):
    """The weighted mean of ranks, as (column, signed share, scale) of each feature that has a say.

    A rank r that makes a request simple counts as 1 - r: its share is negative, and ``offset`` adds the ones.
    """

    parts: tuple[tuple[int, float, Scale], ...]
    offset: float

    @classmethod
    def of(cls, weights: Mapping[str, float], scales: Mapping[str, Scale | None]) -> "_Mixture":
        used = [
            (i, weights[name], scale)
            for i, name in enumerate(Features._fields)
            if (scale := scales.get(name)) is not None and weights[name]
        ]
        total = math.fsum(abs(weight) for _, weight, _ in used)
        parts = tuple((i, weight / total, scale) for i, weight, scale in used)
        return cls(parts, -math.fsum(share for _, share, _ in parts if share < 0))

    def mean_rank(self, row: Sequence[float]) -> float:
        mean = self.offset
        for i, share, scale in self.parts:
            mean += share * scale.rank(row[i])
        return mean
