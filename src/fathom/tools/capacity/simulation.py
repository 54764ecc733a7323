"""One core of a server under load: a discrete-event simulation, without a clock, threads or a server.

Batches are formed by the server's own queue (``runtime.lanes``) and depths are chosen by its own chooser
(``selector.chooser``), from estimates that its own cost model (``runtime.cost``) makes of simulated runs. What remains
is a queue with batch service, M/G^[b]/1: a batch of n requests keeps the core for ``fixed_s + n * each_s`` seconds
(Neuts, 1967, "A general class of bulk queues with Poisson input"). With batches of one it is M/G/1.

One core does everything, in two threads (``threads``): the event loop reads requests, answers at depth 0 and sends
what the engine has found; the engine runs batches. Whichever wakes while the other works may have to wait for it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import DeadlineError, OverloadError
from fathom.runtime.cost import CostModel, Demand, Lag, Line
from fathom.runtime.lane import Entry
from fathom.runtime.lanes import Cell, Lanes, Taken
from fathom.selector.choice import Choice, DepthReason, DepthRequest, PolicyName
from fathom.selector.chooser import DepthChooser
from fathom.selector.policy import DepthPolicy
from fathom.tools.capacity.threads import SharedCore, Thread

Floats = NDArray[np.float64]
#: Share of the requests, the first, that are not counted: the queue begins empty.
WARM_UP = 0.1
#: No work of so little is told from none, as in ``runtime.batcher``.
LITTLE_S, LITTLE_SHARE = 0.2, 1 / 32
#: Of a history that only is not empty.
SOME_ITEM = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Core:
    """What requests cost one core, in seconds, and how it forms batches.

    ``lines``: of a batch, by depth and length bucket, everything included. ``around``: the part of it that is not the
    engine's, 0 where it is missing; half of a request's is done when it arrives, the rest when the engine has ended.
    ``count_s``: an answer at depth 0. ``choosing_s``: of a request whose depth is not fixed. ``jitter``: factors of a
    batch's time, 1 in the mean, drawn at random. ``delays_s``, ``stalls_per_s``, ``stalls_s``: see
    ``threads.SharedCore``. ``wire_s``: what the caller sees beside the core's work. ``mixes``: whether a batch may have
    several depths.
    """

    lines: Mapping[Cell, Line]
    count_s: float
    around: Mapping[Cell, float] = field(default_factory=dict)
    choosing_s: float = 0.0
    jitter: Sequence[float] = (1.0,)
    delays_s: Sequence[float] = (0.0,)
    stalls_per_s: float = 0.0
    stalls_s: Sequence[float] = (0.0,)
    wire_s: float = 0.0
    max_batch: int = 32
    max_batch_tokens: int = 2048
    max_queue: int = 1024
    patience_s: float = 1.0
    mixes: bool = False

    def read_s(self, cell: Cell) -> float:
        """What is done when a request arrives."""
        return self.around.get(cell, 0.0) / 2 * self.lines[cell].each_s

    def engine(self, cell: Cell) -> Line:
        """The engine's part of a batch."""
        line, part = self.lines[cell], 1 - self.around.get(cell, 0.0)
        return Line(part * line.fixed_s, part * line.each_s)


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals in units of the mean gap, and of each the depth that its policy wants and its length's bucket.

    The same traffic at two rates has the same requests, so that a comparison of rates has little noise.
    """

    gaps: Floats
    depths: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def drawn(cls, count: int, mix: Mapping[int, float], lengths: Mapping[int, float], seed: int) -> "Traffic":
        """``mix`` and ``lengths``: the shares of the depths, and of the length buckets."""
        rng = np.random.default_rng(seed)
        depths = rng.choice(list(mix), count, p=_shares(mix))
        gaps = rng.exponential(1.0, count)
        # Exactly the rate that is asked for: near its limit a queue makes much of a per cent.
        return cls(gaps / gaps.mean(), depths, rng.choice(list(lengths), count, p=_shares(lengths)))

    def arrivals_s(self, per_s: float) -> Floats:
        """When each request arrives, at so many per second."""
        times: Floats = np.cumsum(self.gaps) / per_s
        return times


@dataclass(frozen=True)
class Rules:
    """How depths are chosen: fixed where ``fixed``, else as each request wants and its deadline allows.

    ``deadline_s``: of every request; infinite for none.
    """

    profile: DeviceProfile
    served: tuple[int, ...]
    deadline_s: float = math.inf
    fixed: bool = False


class Outcome(NamedTuple):
    """What became of each request: seconds to its answer (NaN: refused), its depth (-1), and the depth it wanted.

    ``busy``: the share of the time that the core worked.
    """

    took_s: Floats
    depths: NDArray[np.int64]
    wanted: NDArray[np.int64]
    busy: float
    seconds: float

    def quantile_s(self, share: float) -> float:
        """Of the time to an answer; infinite where nothing was answered."""
        answered = self.took_s[~np.isnan(self.took_s)]
        return float(np.quantile(answered, share)) if len(answered) else math.inf

    def in_time(self, deadline_s: float) -> float:
        """Share of the requests that were answered within so many seconds."""
        return float(np.count_nonzero(self.took_s <= deadline_s)) / max(1, len(self.took_s))

    def shallower(self) -> float:
        """Share of the requests that got a shallower depth than they wanted, or no answer."""
        return float(np.count_nonzero(self.depths < self.wanted)) / max(1, len(self.depths))


def simulate(core: Core, rules: Rules, traffic: Traffic, per_s: float, *, seed: int = 0) -> Outcome:
    """So much traffic on one core, at ``per_s`` requests per second."""
    return _Server(core, rules, len(traffic.gaps), seed).run(traffic, traffic.arrivals_s(per_s))


def most_per_s(sustained: Callable[[float], bool], highest: float, *, steps: int = 9) -> float:
    """The highest rate that is ``sustained``, to ``highest / 2 ** steps``; 0 where none is."""
    low, high = 0.0, highest
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if sustained(middle) else (low, middle)
    return low


class _Wanted(DepthPolicy):
    """The depth that was drawn for the request whose turn it is."""

    wanted = 0

    def choose(self, request: DepthRequest) -> Choice:  # noqa: ARG002
        """That depth."""
        return Choice(self.wanted, DepthReason.CERTIFIED, "")


class _Chooser(DepthChooser):
    """The server's chooser, with one policy for every profile."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(None, rules.served, policy="deepest", alpha=0.01)
        self.wants = _Wanted(tuple(depth for depth in rules.served if depth and depth in rules.profile.depths))

    def policy(self, profile: DeviceProfile, name: PolicyName | None = None) -> DepthPolicy:  # noqa: ARG002
        """That policy."""
        return self.wants


class _Request(NamedTuple):
    """``read_s``: work of reading it."""

    number: int
    arrival_s: float
    read_s: float


class _Server:
    """The core at one moment. It also is the chooser's ``Estimates`` of the request that has just been read."""

    def __init__(self, core: Core, rules: Rules, count: int, seed: int) -> None:
        self._core, self._rules = core, rules
        lengths = tuple(sorted({length for _, length in core.lines}))
        self._lanes: Lanes[_Request] = Lanes(
            buckets=lengths,
            max_queue=core.max_queue,
            max_batch=core.max_batch,
            max_batch_tokens=core.max_batch_tokens,
            patience_s=core.patience_s,
            mixes=core.mixes,
        )
        engine = {cell: core.engine(cell) for cell in core.lines}
        self._cost = CostModel(engine, tail=float(np.quantile(core.jitter, 0.99)) - 1)
        self._engine = CostModel(engine, tail=0.0)
        self._whole = CostModel(core.lines, tail=0.0)
        self._demand, self._lag = Demand(), Lag()
        self._chooser = _Chooser(rules)
        self._shallowest = min(depth for depth, _ in core.lines)
        rng = np.random.default_rng(seed)
        self._factors = iter(rng.choice(core.jitter, count).tolist())
        self._threads = SharedCore(core.delays_s, core.stalls_per_s, core.stalls_s, rng)
        self._waking, self._runs, self._busy_until_s = False, False, 0.0
        self._took = np.full(count, np.nan)
        self._depths = np.full(count, -1)
        # Of the request that has just been read.
        self._now_s, self._length, self.time_s = 0.0, 0, math.inf

    def run(self, traffic: Traffic, arrivals_s: Floats) -> Outcome:
        """Every request in turn, then what still waits."""
        for number, (at_s, depth, length) in enumerate(
            zip(arrivals_s.tolist(), traffic.depths.tolist(), traffic.lengths.tolist(), strict=True)
        ):
            self._threads.advance(at_s)
            read_s = self._core.read_s((depth, length)) if depth else 0.0
            read = partial(self._read, _Request(number, at_s, read_s), depth, length)
            self._threads.add(Thread.LOOP, read_s + self._core.choosing_s, read)
        self._threads.advance(math.inf)
        first = int(WARM_UP * len(arrivals_s))
        seconds = float(arrivals_s[-1])
        return Outcome(
            self._took[first:],
            self._depths[first:],
            traffic.depths[first:],
            self._threads.busy_s / max(seconds, self._threads.now_s),
            seconds - float(arrivals_s[first]),
        )

    # What the chooser asks: see ``runtime.estimates.BatcherEstimates`` and ``runtime.batcher.Batcher.queue_s``.

    #: Loads are simulated that a server can bear.
    behind: Final = False

    def queue_s(self, depth: int) -> float:
        """Seconds until a new request would start."""
        if not depth:
            return 0.0
        queue_s = self._lanes.work_s
        little_s = LITTLE_S if self.time_s == math.inf else min(LITTLE_S, LITTLE_SHARE * self.time_s)
        if queue_s > little_s:
            deadline_s = None if self.time_s == math.inf else self._now_s + self.time_s
            ahead = self._lanes.ahead(self._lanes.urgency_s(self._now_s, deadline_s))
            queue_s = self._cost.queue_s(ahead, self._lanes.batch_limit)
            queue_s *= self._lanes.share(work_s=self._cost.each_s(depth, self._length))
        if self._runs:
            queue_s += max(0.0, self._busy_until_s - self._now_s)
        return queue_s

    @property
    def care(self) -> float:
        """See ``runtime.cost.Demand``."""
        return self._demand.care(self._now_s)

    def cost_s(self, depth: int, *, care: float = 1.0) -> float:
        """Seconds of an answer, once it starts."""
        if not depth:
            return self._core.count_s
        return self._cost.p99_s(depth, self._length, care=care) + care * self._lag.value

    def may_probe(self, depth: int) -> bool:
        """Whether a request should run although it seems to be late: estimates here are never that wrong."""
        return not depth and self.time_s >= self._core.count_s

    # What the event loop does.

    def _read(self, request: _Request, wanted: int, length: int, now_s: float) -> None:
        self._now_s, self._length = now_s, length
        self.time_s = request.arrival_s + self._rules.deadline_s - now_s
        fixed = self._rules.fixed
        self._chooser.wants.wanted = wanted
        asked = DepthRequest(self._rules.profile, SOME_ITEM, _never, wanted if fixed else None, self)
        try:
            depth = self._chooser.choose(asked).depth
        except (DeadlineError, OverloadError):
            self._demand.add(self._cost.each_s(self._shallowest, length), now_s)
            return
        if wanted > depth == 0:
            self._demand.add(self._cost.each_s(self._shallowest, length), now_s)
        if not depth or len(self._lanes) >= self._core.max_queue:
            self._instead(request)
            return
        self._queue(request, depth, length, now_s)

    def _queue(self, request: _Request, depth: int, length: int, now_s: float) -> None:
        counts = self._counts
        work_s = self._cost.each_s(depth, length)
        by_s = None
        if self._rules.deadline_s < math.inf:
            by_s = request.arrival_s + self._rules.deadline_s - (1.0 if counts else self.care) * self._lag.value
        self._lanes.push(Entry(depth, length, now_s, by_s, request, work_s=work_s, sure=counts))
        self._demand.add(work_s, now_s)
        if not self._waking:
            # Once for all that have arrived together: so they become one batch.
            self._waking = True
            self._threads.add(Thread.LOOP, 0.0, self._wake)

    @property
    def _counts(self) -> bool:
        return not self._rules.fixed and self._chooser.may_count(self._rules.profile, None)

    def _wake(self, _: float) -> None:
        self._waking = False
        if not self._threads.does(Thread.ENGINE):
            self._threads.add(Thread.ENGINE, 0.0, self._begin)

    def _instead(self, request: _Request) -> None:
        """Depth 0, where it is allowed and in time; else nothing."""
        fixed_zero = self._rules.fixed and not self._chooser.wants.wanted
        if self._counts or fixed_zero:
            count_s = max(0.0, self._core.count_s - request.read_s)
            self._threads.add(Thread.LOOP, count_s, partial(self._answer, [(request, 0)]), first=True)

    def _answer(self, answers: Iterable[tuple[_Request, int]], now_s: float) -> None:
        for request, depth in answers:
            took_s = now_s - request.arrival_s + self._core.wire_s
            if took_s <= self._rules.deadline_s:
                self._took[request.number], self._depths[request.number] = took_s, depth

    # What the engine does.

    def _begin(self, now_s: float) -> None:
        self._cost.care = self._demand.care(now_s)
        taken = self._lanes.take(now_s, self._cost)
        if taken is None:
            return
        for entry in taken.late:
            self._instead(entry.payload)
        if not taken.batch:
            self._begin(now_s)
            return
        requests, factor = taken.by_depth, next(self._factors)
        read_s = sum(self._core.read_s((each.depth, taken.length)) for each in taken.batch)
        engine_s = self._engine.p50_s(taken.length, requests)
        after_s = max(0.0, self._whole.p50_s(taken.length, requests) - read_s - engine_s) * factor
        self._runs, self._busy_until_s = True, now_s + self._cost.p50_s(taken.length, requests)
        self._threads.add(Thread.ENGINE, engine_s * factor, partial(self._end, taken, now_s, after_s))

    def _end(self, taken: Taken[_Request], began_s: float, after_s: float, now_s: float) -> None:
        self._runs = False
        self._cost.observe(taken.length, taken.by_depth, max(1e-9, now_s - began_s), now_s)
        self._threads.add(Thread.LOOP, after_s, partial(self._deliver, taken, now_s))
        self._begin(now_s)

    def _deliver(self, taken: Taken[_Request], ended_s: float, now_s: float) -> None:
        self._lag.observe(now_s - ended_s, now_s)
        self._answer(((entry.payload, entry.depth) for entry in taken.batch), now_s)


def _never(*, brief: bool = False) -> NoReturn:  # noqa: ARG001
    raise AssertionError("the depth was drawn; nothing is inspected")


def _shares(counts: Mapping[int, float]) -> Floats:
    values = np.array(list(counts.values()), float)
    shares: Floats = values / values.sum()
    return shares
