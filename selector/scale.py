"""What rank a value has among those of training."""

from bisect import bisect_right
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fathom.selector.schema import STRICT, Finite, Floats, Share

QUANTILES = 65


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
    def fit(cls, sample: Floats) -> "Scale":
        """The scale of a sample (n,), n >= 1, without NaN."""
        return cls.of(np.quantile(sample, np.linspace(0.0, 1.0, QUANTILES)))

    @classmethod
    def of(cls, quantiles: Floats) -> "Scale":
        """From quantiles (n,), ascending, at even steps from 0 to 1, n >= 2."""
        # np.unique would load numpy.ma, which servers need for nothing else.
        grid, values = np.linspace(0.0, 1.0, len(quantiles)), quantiles[np.diff(quantiles, prepend=-np.inf) > 0]
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
