"""Complexity in bundles of before it was learned (schema 1): the share of training histories that are simpler.

Each feature becomes its rank among the training histories (0 to 1). A request is complex when there is much to relate
(long history), nothing to copy (few repeats), little to lean on (unpopular items, events far apart in time) and many
interests at once (items unlike each other). The weighted mean of those ranks is ranked among the training histories
once more, so a threshold of 0.5 sends half of such traffic to the shallow depth, whatever the data set.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from fathom.selector.features import BRIEF, Features
from fathom.selector.scale import Scale
from fathom.selector.schema import STRICT, Finite


@dataclass(frozen=True, config=STRICT)
class RankedComplexity:
    """Normalisation learned on training histories.

    ``weights`` and ``scales`` name the features that have a say, at least one; the rest of Features is not looked at.
    One that was never known in training has the scale None, and no say after all.
    """

    schema_version: Literal[1]
    weights: dict[str, Finite]
    scales: dict[str, Scale | None]
    combined: Scale
    histories: Annotated[int, Field(ge=1)]

    #: These bundles do not say what the network's scores were divided by in training.
    temperature = None

    def __post_init__(self) -> None:
        if not self.weights or not self.weights.keys() <= set(Features._fields):
            raise ValueError(f"weights must be for some of {', '.join(Features._fields)}")
        if self.weights.keys() != self.scales.keys():
            raise ValueError("weights and scales are for different features")

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

    def at_share(self, share: float) -> float:
        """The complexity that this share of requests lies below: the same number."""
        return share

    @property
    def scale(self) -> Scale:
        """Of complexity, which is a rank itself."""
        return Scale((0.0, 1.0), (0.0, 1.0))


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
