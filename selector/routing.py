"""How requests are spread over depths: one member of a family of policies, as a certificate names it.

Every routing can be asked twice: online for the depth of one request, offline for the probability of each depth for
many requests, which is what a certificate is about. Both give the same.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.schema import STRICT, AnyDepth, Depth, Finite, Floats, Share

#: What an exit says about its own answer: the best score, and how far the second and the tenth lie below it.
CONFIDENCE = ("best", "to_second", "to_tenth")


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
    model: LossModel

    def __post_init__(self) -> None:
        if len(self.costs) != len(self.depths) or len(self.model.intercept) != len(self.depths) - 1:
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
        losses = np.column_stack([self.model.predict(inputs.features), np.zeros(len(inputs.features))])
        totals = losses + self.price * np.array(self.costs)
        # Of two equal totals the deepest goes, then the shallowest: as online.
        order = np.roll(np.arange(len(self.depths)), 1)
        return one_hot(order[totals[:, order].argmin(1)], len(self.depths))

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
    gates: tuple[LossModel, ...]

    def __post_init__(self) -> None:
        deeper = [len(self.depths) - 1 - place for place in range(len(self.depths) - 1)]
        if len(self.costs) != len(self.depths) or [len(gate.intercept) for gate in self.gates] != deeper:
            raise ValueError("costs, gates and depths do not fit together")

    def depth(self, features: Features, complexity: float, coin: float) -> int:  # noqa: ARG002
        """The depth of one request at most; ``goes_on`` says where it stops."""
        return self.depths[-1]

    def goes_on(self, place: int, rows: Floats) -> NDArray[np.bool_]:
        """Whether requests go on after exit ``place``, (n,), from features and confidence there, (n, features + 3)."""
        further = np.array(self.costs[place + 1 :]) - self.costs[place]
        worth = self.gates[place].predict(rows) > self.price * further
        return np.asarray(worth.any(axis=-1))

    def probabilities(self, inputs: "RoutingInputs") -> Floats:
        """Probability of each depth, (n, depths), for n requests."""
        stopped = np.full(len(inputs.features), len(self.depths) - 1)
        for place in reversed(range(len(self.depths) - 1)):
            stopped[~self.goes_on(place, inputs.at_exit(place))] = place
        return one_hot(stopped, len(self.depths))

    @property
    def words(self) -> str:
        """For people."""
        return f"on from exit to exit while the expected gain exceeds {self.price:.2g} x cost"


Routing = Annotated[Mixture | Rule | Learned | Cascade, Field(discriminator="policy")]


class RoutingInputs(NamedTuple):
    """Many requests: ``features`` (n, features), ``complexity`` (n,), ``confidence`` (n, depths, 3) at every exit."""

    features: Floats
    complexity: Floats
    confidence: Floats

    def at_exit(self, place: int) -> Floats:
        """What a gate sees, (n, features + 3)."""
        return np.column_stack([self.features, self.confidence[:, place]])


def neighbours_mixed(depths: Sequence[int], steps: int) -> list[Mixture]:
    """From all requests at the deepest depth to all at the shallowest, moving them one depth further at a time.

    ``steps`` per pair of neighbours; each routing is a little cheaper than the one before, and nothing is learned.
    """
    path = []
    count = len(depths)
    for deep in range(count - 1, 0, -1):
        for step in range(1, steps + 1):
            shares = [0.0] * count
            shares[deep], shares[deep - 1] = 1 - step / steps, step / steps
            path.append(Mixture("mixture", tuple(depths), tuple(shares)))
    return path


def thresholds(depths: Sequence[int], steps: int) -> list[Rule]:
    """From no request at the shallowest depth to nearly all."""
    return [Rule("rule", tuple(depths), step / steps) for step in range(1, steps + 1)]


def priced(
    model: LossModel, depths: Sequence[int], costs: Sequence[float], inputs: RoutingInputs, steps: int
) -> list[Learned]:
    """From free computation to prices at which everything is shallow, about evenly spaced in what they cost.

    ``inputs``: of requests, as those that the model has learned from.
    """
    path = [Learned("learned", tuple(depths), price, tuple(costs), model) for price in _PRICES]
    return _evenly(path, costs, inputs, steps)


def gated(
    gates: Sequence[LossModel], depths: Sequence[int], costs: Sequence[float], inputs: RoutingInputs, steps: int
) -> list[Cascade]:
    """As ``priced``, for cascades."""
    path = [Cascade("cascade", tuple(depths), price, tuple(costs), tuple(gates)) for price in _PRICES]
    return _evenly(path, costs, inputs, steps)


_PRICES: Sequence[float] = (0.0, *np.geomspace(1e-6, 10.0, 400).tolist())
_Priced = TypeVar("_Priced", Learned, Cascade)


def _evenly(path: Sequence[_Priced], costs: Sequence[float], inputs: RoutingInputs, steps: int) -> list[_Priced]:
    spent = np.array([float((each.probabilities(inputs) @ np.array(costs)).mean()) for each in path])
    wanted = np.linspace(spent[0], spent[-1], steps)
    return [path[i] for i in sorted({int(np.abs(spent - level).argmin()) for level in wanted})]


def confidence(scores: Sequence[float] | NDArray[np.floating]) -> tuple[float, float, float]:
    """CONFIDENCE of an answer, from the scores (<= 10,) of its best items, best first; zeros for fewer than two."""
    if len(scores) < 2:
        return 0.0, 0.0, 0.0
    best = float(scores[0])
    return best, best - float(scores[1]), best - float(scores[-1])


def one_hot(chosen: NDArray[np.intp], count: int) -> Floats:
    """Probability 1 for the chosen column of each row (n,), as (n, count)."""
    return np.eye(count)[chosen]
