"""How requests are spread over depths: one member of a family of policies, as a certificate names it.

Every routing can be asked twice: online for the depth of one request, offline for the probability of each depth for
many requests, which is what a certificate is about. Both give the same.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.net import NetModel
from fathom.selector.schema import STRICT, AnyDepth, Depth, Finite, Floats, Share
from fathom.selector.tables import TableModel

#: What an exit says about its own answer: the best score; how far the second and the last of its best ten lie below
#: it; the entropy of the ten.
CONFIDENCE = ("best", "to_second", "to_tenth", "entropy")
#: Items of an answer that say how sure it is.
TOP = 10
#: The place of the length among the features.
LENGTH = Features._fields.index("length")
#: Scores are divided by it before their softmax, of which the entropy is taken: nats of ten items, 0 to log(10).
SHARPNESS = 0.05

Model = LossModel | TableModel | NetModel


def coin(items: NDArray[np.int64]) -> float:
    """A number in [0, 1) that follows from a history, item indices (length,): equal requests are routed alike."""
    return crc32(items.tobytes()) / 2**32


@dataclass(frozen=True, config=STRICT)
class Mixture:
    """Each depth gets its share of the requests, whatever they are; a hash of the history decides."""

    policy: Literal["mixture"]
    depths: tuple[AnyDepth, ...]
    shares: tuple[Share, ...]

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.shares) or abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError("a mixture needs one share per depth, 1 in all")

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request."""
        return self.drawn(coin)

    def drawn(self, coin: float) -> int:
        """The depth of a request, of which nothing but its coin has a say."""
        for depth, share in zip(self.depths, self.shares, strict=True):
            coin -= share
            if coin < 0:
                return depth
        return self.depths[-1]

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return np.tile(np.array(self.shares), (len(inputs.features), 1))

    @property
    def words(self) -> str:
        """For people, as ``85 % depth 4, 15 % depth 8``."""
        parts = [f"{share:.0%} depth {d}" for d, share in zip(self.depths, self.shares, strict=True) if share]
        return ", ".join(parts).replace("%", " %")


@dataclass(frozen=True, config=STRICT)
class Rule:
    """The shallowest depth for requests below a threshold of complexity, the deepest for the others."""

    policy: Literal["rule"]
    depths: tuple[AnyDepth, ...]
    threshold: Share

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request."""
        return self.depths[0 if complexity < self.threshold else -1]

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return one_hot(np.where(inputs.complexity < self.threshold, 0, len(self.depths) - 1), len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        return f"depth {self.depths[0]} below complexity {self.threshold:.2f}, else depth {self.depths[-1]}"


class DepthCosts(NamedTuple):
    """What each depth costs, relative to what the deepest does on average: ``fixed`` + ``per_item`` x length."""

    fixed: Sequence[float]
    per_item: Sequence[float]

    def of(self, rows: Floats) -> Floats:
        """Of requests, by their features: (n, depths) of rows (n, features or more), (depths,) of one row."""
        costs: Floats = np.array(self.fixed) + np.multiply.outer(rows[..., LENGTH], np.array(self.per_item))
        return costs


class _Priced:
    """What ``Learned`` and ``Cascade`` have in common: the depth with the least expected loss + price x cost.

    ``model`` predicts the loss of every depth but the deepest. ``costs`` and ``per_item``: see ``DepthCosts``; without
    ``per_item``, as in older certificates, a cost is the same at any length.
    """

    depths: tuple[int, ...]
    price: float
    costs: tuple[float, ...]
    model: Model
    per_item: tuple[float, ...]

    def places(self, rows: Floats) -> NDArray[np.intp]:
        """The place among ``depths`` of each request, (n,), by rows (n, features) as the model knows them."""
        costs = DepthCosts(self.costs, self.per_item or (0.0,) * len(self.costs))
        return least_total(self.model.predict(rows), costs.of(rows), self.price)

    def check(self) -> None:
        """Raise ValueError for parts that are not of one routing."""
        count = len(self.depths)
        if len(self.costs) != count or len(self.per_item) not in (0, count) or self.model.sizes[1] != count - 1:
            raise ValueError("costs, losses and depths do not fit together")


@dataclass(frozen=True, config=STRICT)
class Learned(_Priced):
    """A depth for each request from its features, before any layer has run."""

    policy: Literal["learned"]
    depths: tuple[AnyDepth, ...]
    price: Annotated[float, Field(ge=0, le=1e6)]
    costs: tuple[Finite, ...]
    model: Model
    per_item: tuple[Finite, ...] = ()

    def __post_init__(self) -> None:
        self.check()

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request."""
        losses, length = self.model.predict(features).tolist(), features.length
        per_item = self.per_item or (0.0,) * len(self.depths)
        best, depth = self.price * (self.costs[-1] + per_item[-1] * length), self.depths[-1]
        for other, loss, fixed, each in zip(self.depths, losses, self.costs, per_item, strict=False):
            if (total := loss + self.price * (fixed + each * length)) < best:
                best, depth = total, other
        return depth

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return one_hot(self.places(inputs.features), len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        return f"least expected loss + {self.price:.2g} x cost, over depths {', '.join(map(str, self.depths))}"


@dataclass(frozen=True, config=STRICT)
class Cascade(_Priced):
    """A depth for each request after the first exit, which is never depth 0: it stops there, or goes on to its depth.

    ``model`` sees the features and what the exit says of its own answer (CONFIDENCE). ``costs`` and ``per_item`` are
    those of going on from there.
    """

    policy: Literal["cascade"]
    depths: tuple[Depth, ...]
    price: Annotated[float, Field(ge=0, le=1e6)]
    costs: tuple[Finite, ...]
    model: Model
    per_item: tuple[Finite, ...] = ()

    def __post_init__(self) -> None:
        self.check()

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request at most; ``places`` says where it stops."""
        return self.depths[-1]

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return one_hot(self.places(inputs.with_answer), len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        first, *deeper = self.depths
        further = ", ".join(map(str, deeper))
        return f"from depth {first} on to {further} by least expected loss + {self.price:.2g} x cost"


Routing = Annotated[Mixture | Rule | Learned | Cascade, Field(discriminator="policy")]


class RoutingInputs(NamedTuple):
    """Many requests: ``features`` (n, features), ``complexity`` (n,), ``confidence`` (n, 4) at the first exit."""

    features: Floats
    complexity: Floats
    confidence: Floats

    @property
    def with_answer(self) -> Floats:
        """What a cascade sees, (n, features + 4)."""
        return np.column_stack([self.features, self.confidence])


def least_total(losses: Floats, costs: Floats, price: float) -> NDArray[np.intp]:
    """The place (n,) of the depth with the least loss + price x cost.

    ``losses`` (n, depths - 1), 0 at the deepest; ``costs`` (n, depths).
    """
    totals = np.column_stack([losses, np.zeros(len(losses))]) + price * costs
    # Of two equal totals the deepest goes, then the shallowest: as online.
    order = np.roll(np.arange(costs.shape[1]), 1)
    places: NDArray[np.intp] = order[totals[:, order].argmin(1)]
    return places


def mixed(depths: Sequence[int], deep: int, shallow: int, steps: int) -> list[Mixture]:
    """From nearly all requests at one depth to all of them at a shallower one; ``depths`` has both."""
    shares = [{deep: 1 - step / steps, shallow: step / steps} for step in range(1, steps + 1)]
    return [Mixture("mixture", tuple(depths), tuple(each.get(depth, 0.0) for depth in depths)) for each in shares]


def thresholds(depths: Sequence[int], complexity: Floats, steps: int) -> list[Rule]:
    """From few requests at the shallowest depth to nearly all; ``complexity`` (n,): of requests as they come."""
    levels = np.unique(np.quantile(complexity, np.linspace(0, 1, steps + 1)[1:]))
    return [Rule("rule", tuple(depths), level) for level in levels.tolist()]


def priced(
    policy: Literal["learned", "cascade"],
    model: Model,
    depths: Sequence[int],
    costs: DepthCosts,
    rows: Floats,
    steps: int,
) -> list[Learned | Cascade]:
    """From free computation to prices at which everything is shallow, about evenly spaced in what they cost.

    ``rows`` (n, features): of requests, as those that the model has learned from.
    """
    losses, spent = model.predict(rows), costs.of(rows)
    prices = _evenly([least_total(losses, spent, price) for price in _PRICES], spent, steps)
    fixed, per_item = map(tuple, costs)
    if policy == "learned":
        return [Learned("learned", tuple(depths), price, fixed, model, per_item) for price in prices]
    return [Cascade("cascade", tuple(depths), price, fixed, model, per_item) for price in prices]


_PRICES: Sequence[float] = (0.0, *np.geomspace(1e-6, 10.0, 400).tolist())


def _evenly(chosen: Sequence[NDArray[np.intp]], costs: Floats, steps: int) -> list[float]:
    """Some of the prices; ``chosen``: the places (n,) where requests go at each, and what depths cost, (n, depths)."""
    rows = np.arange(len(costs))
    spent = np.array([costs[rows, places].mean() for places in chosen])
    wanted = np.linspace(spent[0], spent[-1], steps)
    return [_PRICES[i] for i in sorted({int(np.abs(spent - level).argmin()) for level in wanted})]


class ExitAnswers(NamedTuple):
    """The best TOP items of n requests at one exit, best first: ``items`` (n, TOP), ``scores`` (n, TOP).

    Where there are fewer, the other items are -1 and their scores NaN.
    """

    items: NDArray[np.int64]
    scores: Floats

    @classmethod
    def of(cls, found: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> "ExitAnswers":
        """From the items and scores of each request, as a search finds them."""
        items, scores = np.full((len(found), TOP), -1), np.full((len(found), TOP), np.nan)
        for row, (best, values) in enumerate(found):
            items[row, : len(best)], scores[row, : len(values)] = best[:TOP], values[:TOP]
        return cls(items, scores)


def confidence(answers: ExitAnswers) -> Floats:
    """CONFIDENCE of n requests at an exit, (n, 4): 0 where fewer than two items are found."""
    items, scores = answers
    with np.errstate(invalid="ignore", divide="ignore"):
        below = scores[:, :1] - scores
        shares = np.exp(-below / SHARPNESS)
        shares /= np.nansum(shares, axis=1, keepdims=True)
        entropy = -np.nansum(shares * np.log(shares), axis=1)
    own = np.column_stack([scores[:, 0], below[:, 1], np.fmax.reduce(below, axis=1), entropy])
    own[items[:, 1] < 0] = 0.0
    return own


def one_hot(chosen: NDArray[np.intp], count: int) -> Floats:
    """Probability 1 for the chosen column of each row (n,), as (n, count)."""
    return np.eye(count)[chosen]
