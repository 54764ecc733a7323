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
from fathom.selector.schema import STRICT, AnyDepth, Finite, Floats, Share
from fathom.selector.tables import TableModel

#: The place of the length among the features.
LENGTH = Features._fields.index("length")

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

    def depth(self, coin: float) -> int:
        """The depth of one request."""
        for depth, share in zip(self.depths, self.shares, strict=True):
            coin -= share
            if coin < 0:
                return depth
        return self.depths[-1]

    def probabilities(self, features: Floats) -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return np.tile(np.array(self.shares), (len(features), 1))

    @property
    def words(self) -> str:
        """For people, as ``85 % depth 4, 15 % depth 8``."""
        parts = [f"{share:.0%} depth {d}" for d, share in zip(self.depths, self.shares, strict=True) if share]
        return ", ".join(parts).replace("%", " %")


class DepthCosts(NamedTuple):
    """What each depth costs, relative to what the deepest does on average: ``fixed`` + ``per_item`` x length."""

    fixed: Sequence[float]
    per_item: Sequence[float]

    def of(self, rows: Floats) -> Floats:
        """Of requests, by their features: (n, depths) of rows (n, features or more), (depths,) of one row."""
        costs: Floats = np.array(self.fixed) + np.multiply.outer(rows[..., LENGTH], np.array(self.per_item))
        return costs


@dataclass(frozen=True, config=STRICT)
class Learned:
    """A depth for each request from its features: the one with the least expected loss + price x cost.

    ``model`` predicts the loss of every depth but the deepest. ``costs`` and ``per_item``: see ``DepthCosts``; without
    ``per_item``, as in older certificates, a cost is the same at any length.
    """

    policy: Literal["learned"]
    depths: tuple[AnyDepth, ...]
    price: Annotated[float, Field(ge=0, le=1e6)]
    costs: tuple[Finite, ...]
    model: Model
    per_item: tuple[Finite, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.depths)
        if len(self.costs) != count or len(self.per_item) not in (0, count) or self.model.sizes[1] != count - 1:
            raise ValueError("costs, losses and depths do not fit together")

    def depth(self, features: Features) -> int:
        """The depth of one request."""
        losses, length = self.model.predict_one(features), features.length
        per_item = self.per_item or (0.0,) * len(self.depths)
        best, depth = self.price * (self.costs[-1] + per_item[-1] * length), self.depths[-1]
        for other, loss, fixed, each in zip(self.depths, losses, self.costs, per_item, strict=False):
            if (total := loss + self.price * (fixed + each * length)) < best:
                best, depth = total, other
        return depth

    def probabilities(self, features: Floats) -> Floats:
        """Probability of each depth, (n, depths), for n requests: 1 for one of them."""
        costs = DepthCosts(self.costs, self.per_item or (0.0,) * len(self.costs)).of(features)
        return one_hot(least_total(self.model.predict(features), costs, self.price), len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        return f"least expected loss + {self.price:.2g} x cost, over depths {', '.join(map(str, self.depths))}"


Routing = Annotated[Mixture | Learned, Field(discriminator="policy")]


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


def learned_routings(model: Model, depths: Sequence[int], costs: DepthCosts, rows: Floats, steps: int) -> list[Learned]:
    """From free computation to prices at which everything is shallow, about evenly spaced in what they cost.

    ``rows`` (n, features): of requests, as those that the model has learned from.
    """
    losses, spent = model.predict(rows), costs.of(rows)
    prices = _evenly([least_total(losses, spent, price) for price in _PRICES], spent, steps)
    fixed, per_item = map(tuple, costs)
    return [Learned("learned", tuple(depths), price, fixed, model, per_item) for price in prices]


_PRICES: Sequence[float] = (0.0, *np.geomspace(1e-6, 10.0, 400).tolist())


def _evenly(chosen: Sequence[NDArray[np.intp]], costs: Floats, steps: int) -> list[float]:
    """Some of the prices; ``chosen``: the places (n,) where requests go at each, and what depths cost, (n, depths)."""
    rows = np.arange(len(costs))
    spent = np.array([costs[rows, places].mean() for places in chosen])
    wanted = np.linspace(spent[0], spent[-1], steps)
    return [_PRICES[i] for i in sorted({int(np.abs(spent - level).argmin()) for level in wanted})]


def one_hot(chosen: NDArray[np.intp], count: int) -> Floats:
    """Probability 1 for the chosen column of each row (n,), as (n, count)."""
    return np.eye(count)[chosen]
