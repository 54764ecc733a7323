"""One core of a server under load: a discrete-event simulation, without a clock, threads or a server.

Batches are formed by the server's own queue (``runtime.lanes``) and depths are chosen by its own chooser
(``selector.chooser``), from estimates that its own cost model (``runtime.cost``) makes of simulated runs. What remains
is a queue with batch service, M/G^[b]/1: a batch of n requests keeps the core for ``fixed_s + n * each_s`` seconds
(Neuts, 1967, "A general class of bulk queues with Poisson input"). With batches of one it is M/G/1.

One core does everything: reading a request delays the batch that runs, and so does an answer of depth 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import DeadlineError, OverloadError
from fathom.runtime.cost import CostModel, Demand, Lag, Line
from fathom.runtime.lanes import Cell, Entry, Lanes, Taken
from fathom.selector.choice import Choice, DepthReason, DepthRequest, PolicyName
from fathom.selector.chooser import DepthChooser
from fathom.selector.policy import DepthPolicy

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
    ``count_s``: an answer at depth 0. ``jitter``: factors of a batch's time, 1 in the mean, drawn at random.
    ``stalls_per_s``: how often per second of work the machine takes the core away, for one of ``stalls_s``.
    ``wire_s``: what the caller sees beside the core's work. ``mixes``: whether a batch may have several depths.
    """

    lines: Mapping[Cell, Line]
    count_s: float
    around: Mapping[Cell, float] = field(default_factory=dict)
    jitter: Sequence[float] = (1.0,)
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
    number: int
    arrival_s: float


@dataclass
class _Running:
    """A batch on the core, until ``end_s``, the engine's part of which began at ``began_s``."""

    taken: Taken[_Request]
    began_s: float
    end_s: float
    after_s: float


class _Server:
    """The core at one moment. It also is the chooser's ``Estimates`` of the request that has just arrived."""

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
        self._rng = np.random.default_rng(seed)
        self._factors = iter(self._rng.choice(core.jitter, count).tolist())
        self._running: _Running | None = None
        #: Until when the core is busy with what is no batch.
        self._free_s = self._busy_s = 0.0
        self._took = np.full(count, np.nan)
        self._depths = np.full(count, -1)
        # Of the request that has just arrived.
        self._now_s, self._length, self.time_s = 0.0, 0, math.inf

    def run(self, traffic: Traffic, arrivals_s: Floats) -> Outcome:
        """Every request in turn, then what still waits."""
        for number, (at_s, depth, length) in enumerate(
            zip(arrivals_s.tolist(), traffic.depths.tolist(), traffic.lengths.tolist(), strict=True)
        ):
            self._advance(at_s)
            self._arrive(number, at_s, depth, length)
        self._advance(math.inf)
        first = int(WARM_UP * len(arrivals_s))
        seconds = float(arrivals_s[-1])
        end_s = max(seconds, self._free_s)
        return Outcome(
            self._took[first:],
            self._depths[first:],
            traffic.depths[first:],
            self._busy_s / end_s,
            seconds - float(arrivals_s[first]),
        )

    # What the chooser asks: see ``runtime.estimates.BatcherEstimates`` and ``runtime.batcher.Batcher.queue_s``.

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
        if self._running is not None:
            queue_s += max(0.0, self._running.end_s - self._running.after_s - self._now_s)
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

    # What happens.

    def _arrive(self, number: int, at_s: float, wanted: int, length: int) -> None:
        self._now_s, self._length, self.time_s = at_s, length, self._rules.deadline_s
        fixed = self._rules.fixed
        self._chooser.wants.wanted = wanted
        request = DepthRequest(self._rules.profile, SOME_ITEM, _never, wanted if fixed else None, self)
        try:
            depth = self._chooser.choose(request).depth
        except (DeadlineError, OverloadError):
            self._demand.add(self._cost.each_s(self._shallowest, length), at_s)
            self._delay(at_s, self._core.count_s)
            return
        if wanted > depth == 0:
            self._demand.add(self._cost.each_s(self._shallowest, length), at_s)
        if not depth or len(self._lanes) >= self._core.max_queue:
            self._instead(number, at_s, at_s)
            return
        self._queue(number, at_s, depth, length)

    def _queue(self, number: int, at_s: float, depth: int, length: int) -> None:
        counts = self._counts
        ready_s = self._delay(at_s, self._core.read_s((depth, length)))
        work_s = self._cost.each_s(depth, length)
        by_s = None
        if self._rules.deadline_s < math.inf:
            by_s = at_s + self._rules.deadline_s - (1.0 if counts else self.care) * self._lag.value
        self._lanes.push(Entry(depth, length, ready_s, by_s, _Request(number, at_s), work_s=work_s, sure=counts))
        self._demand.add(work_s, at_s)

    @property
    def _counts(self) -> bool:
        return not self._rules.fixed and self._chooser.may_count(self._rules.profile, None)

    def _delay(self, now_s: float, seconds: float) -> float:
        """The core does something small now, whatever runs; returns when it is done."""
        self._busy_s += seconds
        if self._running is not None:
            self._running.end_s += seconds
            return now_s + seconds
        self._free_s = max(self._free_s, now_s) + seconds
        return self._free_s

    def _instead(self, number: int, arrival_s: float, now_s: float) -> None:
        """Depth 0, where it is allowed and in time; else nothing."""
        fixed_zero = self._rules.fixed and not self._chooser.wants.wanted
        done_s = self._delay(now_s, self._core.count_s)
        if (self._counts or fixed_zero) and done_s - arrival_s <= self._rules.deadline_s:
            self._took[number], self._depths[number] = done_s - arrival_s + self._core.wire_s, 0

    def _advance(self, until_s: float) -> None:
        """Run batches, one after the other, up to a moment."""
        while True:
            if self._running is not None:
                if self._running.end_s > until_s:
                    return
                self._end(self._running)
            if not len(self._lanes) or self._free_s > until_s:
                return
            self._begin(self._free_s)

    def _begin(self, now_s: float) -> None:
        self._cost.care = self._demand.care(now_s)
        taken = self._lanes.take(now_s, self._cost)
        if taken is None:
            return
        for entry in taken.late:
            self._instead(entry.payload.number, entry.payload.arrival_s, now_s)
        if not taken.batch:
            return
        requests, factor = taken.by_depth, next(self._factors)
        read_s = sum(self._core.read_s((each.depth, taken.length)) for each in taken.batch)
        took_s = (self._whole.p50_s(taken.length, requests) - read_s) * factor
        after_s = took_s - self._engine.p50_s(taken.length, requests) * factor
        self._busy_s += took_s
        began_s = max(now_s, self._free_s)
        self._running = _Running(taken, began_s, began_s + took_s + self._stalled_s(took_s), after_s)

    def _stalled_s(self, took_s: float) -> float:
        """How long the core is taken away while something runs."""
        count = self._rng.poisson(self._core.stalls_per_s * took_s) if self._core.stalls_per_s else 0
        stalled_s = float(self._rng.choice(self._core.stalls_s, count).sum()) if count else 0.0
        self._busy_s += stalled_s
        return stalled_s

    def _end(self, running: _Running) -> None:
        self._running, end_s, taken = None, running.end_s, running.taken
        self._free_s = end_s
        ran_s = max(1e-9, end_s - running.after_s - running.began_s)
        self._cost.observe(taken.length, taken.by_depth, ran_s, end_s)
        self._lag.observe(running.after_s, end_s)
        for entry in taken.batch:
            took_s = end_s - entry.payload.arrival_s + self._core.wire_s
            if took_s <= self._rules.deadline_s:
                self._took[entry.payload.number] = took_s
                self._depths[entry.payload.number] = entry.depth


def _never(*, brief: bool = False) -> NoReturn:  # noqa: ARG001
    raise AssertionError("the depth was drawn; nothing is inspected")


def _shares(counts: Mapping[int, float]) -> Floats:
    values = np.array(list(counts.values()), float)
    shares: Floats = values / values.sum()
    return shares
