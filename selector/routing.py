"""How requests are spread over depths: one member of a family of policies, as a certificate names it.

Every routing can be asked twice: online for the depth of one request, offline for the probability of each depth for
many requests, which is what a certificate is about. Both give the same.
"""

from collections.abc import Sequence
from dataclasses import replace
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
#: it; the entropy of the ten; and against the exit before, the share of items in common and the rise of the best score.
CONFIDENCE = ("best", "to_second", "to_tenth", "entropy", "common", "rise")
#: Items of an answer that say how sure it is.
TOP = 10
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


@dataclass(frozen=True, config=STRICT)
class Learned:
    """The depth with the least expected loss + price x cost; ``costs`` are relative to the deepest depth.

    ``model`` predicts the loss of every depth but the deepest.
    """

    policy: Literal["learned"]
    depths: tuple[AnyDepth, ...]
    price: Annotated[float, Field(ge=0, le=1e6)]
    costs: tuple[Finite, ...]
    model: Model

    def __post_init__(self) -> None:
        if len(self.costs) != len(self.depths) or self.model.sizes[1] != len(self.depths) - 1:
            raise ValueError("costs, losses and depths do not fit together")

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request."""
        losses = self.model.predict(features).tolist()
        best, depth = self.price * self.costs[-1], self.depths[-1]
        for other, loss, cost in zip(self.depths, losses, self.costs, strict=False):
            if (total := loss + self.price * cost) < best:
                best, depth = total, other
        return depth

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return one_hot(least_total(self.model.predict(inputs.features), self.costs, self.price), len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        return f"least expected loss + {self.price:.2g} x cost, over depths {', '.join(map(str, self.depths))}"


@dataclass(frozen=True, config=STRICT)
class Cascade:
    """At every exit a gate decides whether to go on: while some deeper depth is expected to gain more than it costs.

    ``costs``: of reaching each exit and reading all before it, relative to the deepest. ``gates``: for every exit but
    the deepest, what each deeper depth gains, from the features and what the exit says of its own answer (CONFIDENCE).
    Depth 0 is no exit on the way.
    """

    policy: Literal["cascade"]
    depths: tuple[Depth, ...]
    price: Annotated[float, Field(ge=0, le=1e6)]
    costs: tuple[Finite, ...]
    gates: tuple[Model, ...]

    def __post_init__(self) -> None:
        deeper = [len(self.depths) - 1 - place for place in range(len(self.depths) - 1)]
        if len(self.costs) != len(self.depths) or [gate.sizes[1] for gate in self.gates] != deeper:
            raise ValueError("costs, gates and depths do not fit together")

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request at most; ``goes_on`` says where it stops."""
        return self.depths[-1]

    def goes_on(self, place: int, rows: Floats) -> NDArray[np.bool_]:
        """Whether requests go on after exit ``place``, (n,), from features and confidence there, (n, features + 6)."""
        return _worth_going_on(place, self._gain(place, rows), self.costs, self.price)

    def gains(self, inputs: "RoutingInputs") -> list[Floats]:
        """At each exit, what each deeper depth is expected to gain, (n, deeper), for n requests; none at the last."""
        places = range(len(self.depths) - 1)
        return [*(self._gain(place, inputs.at_exit(place)) for place in places), np.empty((len(inputs.features), 0))]

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        return one_hot(first_stop(self.gains(inputs), self.costs, self.price), len(self.depths))

    def _gain(self, place: int, rows: Floats) -> Floats:
        gate = self.gates[place]
        # Gates of older certificates know the first three figures of the confidence only.
        return gate.predict(rows[..., : gate.sizes[0]])

    @property
    def words(self) -> str:
        """For people."""
        return f"on from exit to exit while the expected gain exceeds {self.price:.2g} x cost"


Routing = Annotated[Mixture | Rule | Learned | Cascade, Field(discriminator="policy")]


class RoutingInputs(NamedTuple):
    """Many requests: ``features`` (n, features), ``complexity`` (n,), ``confidence`` (n, depths, 6) at every exit."""

    features: Floats
    complexity: Floats
    confidence: Floats

    def at_exit(self, place: int) -> Floats:
        """What a gate sees, (n, features + 6)."""
        return np.column_stack([self.features, self.confidence[:, place]])


def least_total(losses: Floats, costs: Sequence[float], price: float) -> NDArray[np.intp]:
    """The place (n,) of the depth with the least loss + price x cost; ``losses`` (n, depths - 1), 0 at the deepest."""
    totals = np.column_stack([losses, np.zeros(len(losses))]) + price * np.array(costs)
    # Of two equal totals the deepest goes, then the shallowest: as online.
    order = np.roll(np.arange(len(costs)), 1)
    places: NDArray[np.intp] = order[totals[:, order].argmin(1)]
    return places


def first_stop(gains: Sequence[Floats], costs: Sequence[float], price: float) -> NDArray[np.intp]:
    """The place (n,) of the exit where each request stops; ``gains``: at each exit, (n, deeper depths)."""
    going = np.column_stack([_worth_going_on(place, gain, costs, price) for place, gain in enumerate(gains)])
    places: NDArray[np.intp] = going.argmin(axis=1)
    return places


def _worth_going_on(place: int, gains: Floats, costs: Sequence[float], price: float) -> NDArray[np.bool_]:
    """Whether some deeper depth gains more than price x cost."""
    further = np.array(costs[place + 1 :]) - costs[place]
    return np.asarray((gains > price * further).any(axis=-1))


def mixed(depths: Sequence[int], deep: int, shallow: int, steps: int) -> list[Mixture]:
    """From nearly all requests at one depth to all of them at a shallower one; ``depths`` has both."""
    shares = [{deep: 1 - step / steps, shallow: step / steps} for step in range(1, steps + 1)]
    return [Mixture("mixture", tuple(depths), tuple(each.get(depth, 0.0) for depth in depths)) for each in shares]


def thresholds(depths: Sequence[int], complexity: Floats, steps: int) -> list[Rule]:
    """From few requests at the shallowest depth to nearly all; ``complexity`` (n,): of requests as they come."""
    levels = np.unique(np.quantile(complexity, np.linspace(0, 1, steps + 1)[1:]))
    return [Rule("rule", tuple(depths), level) for level in levels.tolist()]


def priced(
    model: Model, depths: Sequence[int], costs: Sequence[float], inputs: RoutingInputs, steps: int
) -> list[Learned]:
    """From free computation to prices at which everything is shallow, about evenly spaced in what they cost.

    ``inputs``: of requests, as those that the model has learned from.
    """
    losses = model.predict(inputs.features)
    prices = _evenly([least_total(losses, costs, price) for price in _PRICES], costs, steps)
    return [Learned("learned", tuple(depths), price, tuple(costs), model) for price in prices]


def gated(
    gates: Sequence[Model], depths: Sequence[int], costs: Sequence[float], inputs: RoutingInputs, steps: int
) -> list[Cascade]:
    """As ``priced``, for cascades."""
    cascade = Cascade("cascade", tuple(depths), 0.0, tuple(costs), tuple(gates))
    gains = cascade.gains(inputs)
    prices = _evenly([first_stop(gains, costs, price) for price in _PRICES], costs, steps)
    return [replace(cascade, price=price) for price in prices]


_PRICES: Sequence[float] = (0.0, *np.geomspace(1e-6, 10.0, 400).tolist())


def _evenly(chosen: Sequence[NDArray[np.intp]], costs: Sequence[float], steps: int) -> list[float]:
    """Some of the prices; ``chosen``: the places (n,) where requests go at each of them."""
    spent = np.array([float(np.take(costs, places).mean()) for places in chosen])
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

    def select(self, rows: NDArray[np.intp]) -> "ExitAnswers":
        """Some requests."""
        return ExitAnswers(self.items[rows], self.scores[rows])


def confidence(answers: ExitAnswers, before: ExitAnswers | None) -> Floats:
    """CONFIDENCE of n requests at an exit, (n, 6); ``before``: their answers at the exit before, None at the first.

    What compares with the exit before is NaN at the first, and the rest 0 where fewer than two items are found.
    """
    items, scores = answers
    with np.errstate(invalid="ignore", divide="ignore"):
        below = scores[:, :1] - scores
        shares = np.exp(-below / SHARPNESS)
        shares /= np.nansum(shares, axis=1, keepdims=True)
        entropy = -np.nansum(shares * np.log(shares), axis=1)
        own = np.column_stack([scores[:, 0], below[:, 1], np.fmax.reduce(below, axis=1), entropy])
        own[items[:, 1] < 0] = 0.0
        if before is None:
            return np.pad(own, ((0, 0), (0, 2)), constant_values=np.nan)
        known = items >= 0
        same = ((items[:, :, None] == before.items[:, None, :]) & known[:, :, None]).any(2).sum(1)
        return np.column_stack([own, same / known.sum(1), scores[:, 0] - before.scores[:, 0]])


def one_hot(chosen: NDArray[np.intp], count: int) -> Floats:
    """Probability 1 for the chosen column of each row (n,), as (n, count)."""
    return np.eye(count)[chosen]
