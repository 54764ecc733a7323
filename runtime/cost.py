"""What a run costs on this machine: measured at the start, corrected by every batch.

Per (depth, length bucket) a straight line, fixed + per request, measured before the first request. A run of several
depths shares layers, but computes each exit for all rows and splits there: of the fixed parts but the largest it saves
half, about. Two numbers for all
of them follow the machine as it is now: ``slowdown``, the median run relative to the lines, and ``tail``, how far the
slowest of 100 runs lies above the median. What slows one depth (a busy neighbour, a lower clock) slows them all, and a
depth that has not run for a while must not keep a stale estimate.

How much of the tail an estimate allows for is its ``care``, 0 to 1: from the median to the 99th percentile. An engine
of which more is asked than it can do must not waste a run on an answer that may be late; with time to spare, it may.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fathom.runtime.lanes import NOBODY, ByDepth, Cell

STEP_P50 = 0.04
STEP_P99 = 0.10
# A span lasts at least this long and has at least this many observations. Two spans are less than a second.
SPAN_S = 0.4
FEW = 4
# The largest of a few observations may well lie below the 99th percentile; half as much again rarely does.
ROOM_P99 = 1.5
# A run's tail is counted relative to its median plus this: being scheduled away costs a short run as many milliseconds
# as a long one, and a short run's bad luck must not be multiplied into a long one's estimate.
GRAIN_S = 0.005
LEAST_TAIL = 0.01
LEAST_SLOWDOWN = 0.01
LEAST_LAG_S = 0.0002
# The demand of the last DEMAND_S or so decides how careful estimates are: not at all below the first of CARE, fully
# from the second on. Less than 1, since the engine is not all that a request takes.
DEMAND_S = 0.3
CARE = (0.5, 0.85)
# Tokens (requests x length) of the larger of the two batches that are measured per cell.
PROBE_TOKENS = 256
# Timed rounds that the start always takes, whatever its budget; the round before them only warms up.
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of one undisturbed run of n requests: ``fixed_s + n * each_s``."""

    fixed_s: float
    each_s: float

    def at(self, requests: float) -> float:
        """Seconds for so many requests."""
        return self.fixed_s + requests * self.each_s


class Quantile:
    """A quantile of what is observed, which is never far from what is observed now.

    Stochastic approximation (Robbins and Monro, 1951) on the logarithm: up by ``step * share`` when an observation is
    above the value, down by ``step * (1 - share)`` when below, which balances at the quantile ``share``. Where that is
    too slow, the last two spans of SPAN_S (and FEW observations) bound it: from below by the least that they saw, from
    above by ``room`` times the most. So within a second of the end of a disturbance it is forgotten.
    """

    def __init__(self, value: float, *, share: float, step: float, least: float, room: float = 1.0) -> None:
        self.value = max(least, value)
        self._up, self._down = math.exp(step * share), math.exp(step * (share - 1))
        self._least = least
        self._room = room
        self._before: tuple[float, float] | None = None
        self._low, self._high, self._count, self._since_s = math.inf, -math.inf, 0, -math.inf

    def observe(self, seen: float, now_s: float, *, probe: bool = False) -> None:
        """Learn from one observation; that of a ``probe`` counts more than all before it, if it is lower."""
        self._note(seen, now_s)
        value = self.value * (self._up if seen > self.value else self._down)
        if self._before is not None:
            low, high = self._before
            value = max(min(value, self._room * max(high, self._high)), min(low, self._low))
        if probe:
            value = min(value, self._room * seen)
        self.value = max(self._least, value)

    def _note(self, seen: float, now_s: float) -> None:
        if self._count >= FEW and now_s - self._since_s >= SPAN_S:
            self._before = self._low, self._high
            self._count = 0
        if not self._count:
            self._low, self._high, self._since_s = seen, seen, now_s
        self._low, self._high = min(self._low, seen), max(self._high, seen)
        self._count += 1


class Lag(Quantile):
    """Seconds from the engine to whoever waits for an answer, which 99 of 100 answers keep to.

    Under load the event loop has other things to do, and an answer that only the engine made in time comes too late.
    """

    def __init__(self) -> None:
        super().__init__(LEAST_LAG_S, share=0.99, step=STEP_P99, least=LEAST_LAG_S, room=ROOM_P99)


class Demand:
    """Engine time that requests ask for, per second, whether they get it or not; what is DEMAND_S ago counts 1/e.

    Added to in one thread, read in any.
    """

    def __init__(self) -> None:
        # One object, so that nobody sees half of a change.
        self._asked = (0.0, -math.inf)

    def add(self, work_s: float, now_s: float) -> None:
        """Somebody asks for so many seconds."""
        self._asked = (self._left_s(now_s) + work_s, now_s)

    def care(self, now_s: float) -> float:
        """How careful estimates should be, 0 to 1."""
        none, full = CARE
        return min(1.0, max(0.0, (self._left_s(now_s) / DEMAND_S - none) / (full - none)))

    def _left_s(self, now_s: float) -> float:
        work_s, at_s = self._asked
        return work_s * math.exp(min(0.0, at_s - now_s) / DEMAND_S)


class CostModel:
    """p50 and p99 of a run by depth, length bucket and batch size. Locked by its owner, as Lanes are.

    ``care``: of ``largest``; its owner sets it.
    """

    def __init__(self, lines: Mapping[Cell, Line], *, tail: float, slowdown: float = 1.0) -> None:
        self._lines = dict(lines)
        self._slowdown = Quantile(slowdown, share=0.5, step=STEP_P50, least=LEAST_SLOWDOWN)
        self._tail = Quantile(tail, share=0.99, step=STEP_P99, least=LEAST_TAIL, room=ROOM_P99)
        self.care = 1.0

    def p50_s(self, length: int, requests: ByDepth) -> float:
        """Median seconds of one run."""
        return self._least_s(length, requests) * self._slowdown.value

    def _least_s(self, length: int, requests: ByDepth) -> float:
        """Seconds of one undisturbed run."""
        lines = [(self._lines[depth, length], n) for depth, n in requests.items()]
        fixed = [line.fixed_s for line, _ in lines]
        return (max(fixed) + sum(fixed)) / 2 + sum(n * line.each_s for line, n in lines)

    def least_s(self, depth: int, length: int) -> float:
        """Seconds of one undisturbed run of one request."""
        return self._lines[depth, length].at(1)

    def each_s(self, depth: int, length: int) -> float:
        """Median seconds that one request more adds to a run."""
        return self._lines[depth, length].each_s * self._slowdown.value

    def p99_s(self, depth: int, length: int, requests: int = 1, *, care: float = 1.0) -> float:
        """Seconds that 99 of 100 runs keep to; with less ``care`` fewer, without any half of them."""
        line, tail = self._lines[depth, length], care * self._tail.value
        return (line.fixed_s + requests * line.each_s) * self._slowdown.value * (1 + tail) + tail * GRAIN_S

    def largest(self, depth: int, length: int, time_s: float, *, sure: bool = False, beside: ByDepth = NOBODY) -> int:
        """The most requests whose one run, with those ``beside`` them, ends within the time at p99; 0 if not even one.

        One, where one alone does with the ``care`` that there must be, unless it must be ``sure``.
        """
        line, tail = self._lines[depth, length], self._tail.value
        p50_s = (time_s - tail * GRAIN_S) / (1 + tail)
        without_s = self._least_s(length, {depth: 0, **beside})
        # A request that fits exactly must not be lost to rounding.
        most = int((p50_s / self._slowdown.value - without_s) / line.each_s + 1e-6)
        if most > 0 or sure or beside:
            return max(0, most)
        return int(self.p99_s(depth, length, care=self.care) <= time_s)

    def queue_s(self, ahead: Iterable[tuple[int, int, int]], batch_limit: Callable[[int], int]) -> float:
        """Median seconds until (depth, length, requests) lanes are worked off in batches of at most the limit."""
        total = 0.0
        for depth, length, requests in ahead:
            line = self._lines[depth, length]
            total += math.ceil(requests / batch_limit(length)) * line.fixed_s + requests * line.each_s
        return total * self._slowdown.value

    def observe(self, length: int, requests: ByDepth, seconds: float, now_s: float, *, probe: bool = False) -> None:
        """Learn from one run; ``probe``: see ``Quantile.observe``."""
        p50_s = self.p50_s(length, requests)
        self._slowdown.observe(seconds / self._least_s(length, requests), now_s, probe=probe)
        self._tail.observe((seconds - p50_s) / (p50_s + GRAIN_S), now_s, probe=probe)


def measure(
    run: Callable[[int, int, int], None],
    *,
    depths: Sequence[int],
    lengths: Sequence[int],
    batch_limit: Callable[[int], int],
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> CostModel:
    """Measure every cell with one request and with a few, at least ROUNDS times and then while ``budget_s`` lasts.

    ``run(depth, length, requests)`` is one full run as requests will meet it. The lines go through the fastest samples,
    because a busy machine only ever adds; how busy it is, is then the median over all samples, and the tail their 99th
    percentile.
    """
    sizes = {length: max(2, min(batch_limit(length), PROBE_TOKENS // max(1, length))) for length in lengths}
    samples: dict[tuple[int, int, int], list[float]] = {
        (depth, length, n): [] for depth in depths for length in lengths for n in (1, sizes[length])
    }
    for point in samples:
        run(*point)
    end_s = clock() + budget_s
    done = 0
    while done < ROUNDS or clock() < end_s:
        for point, taken in samples.items():
            start_s = clock()
            run(*point)
            taken.append(clock() - start_s)
        done += 1
    fastest = _fastest(samples)
    slowdown = median(t / fastest[point] for point, taken in samples.items() for t in taken)
    typical = {point: slowdown * t for point, t in fastest.items()}
    above = sorted((t - typical[point]) / (typical[point] + GRAIN_S) for point, taken in samples.items() for t in taken)
    lines = {
        (depth, length): _line(fastest[depth, length, 1], fastest[depth, length, sizes[length]], sizes[length])
        for depth in depths
        for length in lengths
    }
    return CostModel(lines, tail=above[math.ceil(0.99 * len(above)) - 1], slowdown=slowdown)


def _fastest(samples: Mapping[tuple[int, int, int], Sequence[float]]) -> dict[tuple[int, int, int], float]:
    """The least seconds of each (depth, length, requests); what is deeper, longer or more never takes less.

    So a cell that was disturbed in every round is no dearer than a larger one. Length 0 is another kind of run.
    """
    least = {point: max(min(taken), 1e-9) for point, taken in samples.items()}

    def is_more(other: tuple[int, int, int], point: tuple[int, int, int]) -> bool:
        return bool(other[1]) == bool(point[1]) and all(a >= b for a, b in zip(other, point, strict=True))

    return {point: min(seconds for other, seconds in least.items() if is_more(other, point)) for point in least}


def _line(one_s: float, many_s: float, many: int) -> Line:
    """The line through both points; noise must make neither a request free nor the fixed part negative."""
    each_s = min(max((many_s - one_s) / (many - 1), 0.01 * one_s), one_s)
    return Line(one_s - each_s, each_s)
