"""One number for how complex a request is: how much of its answer the shallowest depth is expected to get wrong.

Complexity is the predicted share of the deepest depth's top 10 that the shallowest depth does not give, from the
features of the request alone: a ridge regression, calibrated so that it means what it says. It was learned from
histories that were answered at both depths.
"""

from bisect import bisect
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fathom.selector.features import Features
from fathom.selector.isotonic import isotonic
from fathom.selector.learned import LossModel, cross_fitted, folds
from fathom.selector.ranked_complexity import RankedComplexity
from fathom.selector.scale import Scale
from fathom.selector.schema import STRICT, Finite, Floats, Share, validated

SCHEMA_VERSION: Literal[2] = 2
#: Steps of the table that turns a share of requests into a complexity.
SHARES = 64
#: A calibration has at most so many points, each the mean of at least so many requests.
POINTS, PER_POINT = 32, 20
#: Groups of requests whose predicted and observed disagreement are compared.
RELIABILITY_BINS = 10


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """What was observed, 0 to 1, where so much was predicted: linear between the points, constant outside them."""

    predicted: Annotated[tuple[Finite, ...], Field(min_length=1)]
    observed: Annotated[tuple[Share, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.observed):
            raise ValueError("predicted and observed differ in length")
        if any(a >= b for a, b in pairwise(self.predicted)) or any(a > b for a, b in pairwise(self.observed)):
            raise ValueError("predicted or observed do not ascend")

    @classmethod
    def fit(cls, predicted: Floats, observed: Floats) -> "Calibration":
        """From predictions (n,) and what they were for (n,), 0 to 1; n >= 1. Isotonic over groups of equal size."""
        order = np.argsort(predicted, kind="stable")
        groups = np.array_split(order, max(1, min(POINTS, len(order) // PER_POINT)))
        centres = np.array([predicted[group].mean() for group in groups])
        sizes = np.array([len(group) for group in groups], dtype=np.float64)
        rising = isotonic(np.array([observed[group].mean() for group in groups]), sizes)
        # One point for what was pooled: between two of them the curve rises.
        starts = np.flatnonzero(np.diff(rising, prepend=-1.0) > 0)
        mass = np.add.reduceat(sizes, starts)
        x, y = np.add.reduceat(centres * sizes, starts) / mass, np.clip(rising[starts], 0.0, 1.0)
        kept = np.flatnonzero(np.diff(x, prepend=-np.inf) > 0)
        return cls(tuple(x[kept].tolist()), tuple(y[kept].tolist()))

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats]:
        return np.array(self.predicted), np.array(self.observed)

    def of(self, predicted: Floats) -> Floats:
        """The calibrated predictions, of the same shape."""
        return np.asarray(np.interp(predicted, *self._arrays))

    def of_one(self, predicted: float) -> float:
        """As ``of`` for one prediction."""
        xs, ys = self.predicted, self.observed
        above = bisect(xs, predicted)
        if above == 0 or above == len(xs):
            return ys[min(above, len(xs) - 1)]
        share = (predicted - xs[above - 1]) / (xs[above] - xs[above - 1])
        return ys[above - 1] + share * (ys[above] - ys[above - 1])


class ReliabilityPoint(NamedTuple):
    """Mean disagreement of a group of requests: as predicted, as observed, and how many requests it has."""

    predicted: float
    observed: float
    requests: int


def reliability(predicted: Floats, observed: Floats) -> tuple[ReliabilityPoint, ...]:
    """Ten groups of requests (n,), n >= 1, from the lowest prediction to the highest; fewer where there are fewer."""
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(RELIABILITY_BINS, len(predicted)))
    return tuple(
        ReliabilityPoint(round(float(predicted[rows].mean()), 4), round(float(observed[rows].mean()), 4), len(rows))
        for rows in groups
    )


@dataclass(frozen=True, config=STRICT)
class ComplexityModel:
    """Predicts the disagreement of the shallowest depth with the deepest.

    ``quantiles``: the complexity below which each of SHARES equal steps of the requests lies. ``reliability``: of
    predictions for users that were not learned from. ``requests``: how many it has learned from. ``temperature``: that
    the network's scores were divided by in training. ``scales``: of each feature among the requests, None where it was
    never known.
    """

    schema_version: Literal[2]
    model: LossModel
    calibration: Calibration
    quantiles: tuple[Share, ...]
    reliability: tuple[ReliabilityPoint, ...]
    requests: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    scales: dict[str, Scale | None]

    #: It looks at all features.
    is_brief = False

    def __post_init__(self) -> None:
        if len(self.model.centre) != len(Features._fields) or len(self.model.intercept) != 1:
            raise ValueError("model does not predict one number from the features")
        if len(self.quantiles) != SHARES + 1 or any(a > b for a, b in pairwise(self.quantiles)):
            raise ValueError(f"quantiles must be {SHARES + 1} ascending shares")
        if self.scales.keys() != set(Features._fields):
            raise ValueError("scales are not for the features")

    @classmethod
    def fit(
        cls,
        rows: Floats,
        disagreement: Floats,
        users: NDArray[np.integer],
        whole: NDArray[np.bool_],
        temperature: float,
    ) -> "ComplexityModel":
        """Learn from features (n, 11) and disagreement (n,), 0 to 1, of requests of some users (n,), n >= 1.

        ``whole`` (n,): requests as they are expected to come, whose quantiles and scales are taken; none: those of all.
        """
        target = disagreement[:, None]
        predicted = cross_fitted(LossModel.fit, rows, target, users)[:, 0]
        unseen = np.empty_like(predicted)
        for rest, fold in folds(users):
            unseen[fold] = Calibration.fit(predicted[rest], disagreement[rest]).of(predicted[fold])
        model, calibration = LossModel.fit(rows, target, users), Calibration.fit(predicted, disagreement)
        expected = rows[whole] if whole.any() else rows
        complexity = calibration.of(model.predict(expected)[:, 0])
        steps = np.quantile(complexity, np.linspace(0, 1, SHARES + 1)[1:-1]).tolist()
        curve = reliability(unseen, disagreement)
        columns = ((name, column[~np.isnan(column)]) for name, column in zip(Features._fields, expected.T, strict=True))
        scales = {name: Scale.fit(known) if len(known) else None for name, known in columns}
        return cls(SCHEMA_VERSION, model, calibration, (0.0, *steps, 1.0), curve, len(rows), temperature, scales)

    def score(self, features: Features) -> float:
        """Complexity of one request: the share of the top 10, 0 to 1."""
        return self.calibration.of_one(self.model.predict_one(features)[0])

    def at_share(self, share: float) -> float:
        """The complexity that this share of requests, 0 to 1, lies below."""
        step, rest = divmod(share * SHARES, 1)
        low, high = self.quantiles[int(step)], self.quantiles[min(int(step) + 1, SHARES)]
        return low + rest * (high - low)

    @property
    def scale(self) -> Scale:
        """Of complexity among the requests."""
        return Scale.of(np.array(self.quantiles))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by ``read_complexity``."""
        form: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return form


Complexity = ComplexityModel | RankedComplexity

_ADAPTER = TypeAdapter(ComplexityModel)
_RANKED = TypeAdapter(RankedComplexity)


def read_complexity(value: Mapping[str, Any], *, where: str = "selector") -> Complexity:
    """Raises ArtefactError, in one line, for a newer schema, NaN, or anything that ``fit`` cannot have made."""
    adapter: TypeAdapter[Any] = _RANKED if value.get("schema_version") == 1 else _ADAPTER
    found: Complexity = validated(
        adapter, value, kind="selector", where=where, newest=SCHEMA_VERSION, remedy="export the bundle again"
    )
    return found
