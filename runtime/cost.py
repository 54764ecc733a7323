"""What a run costs on this machine: measured at the start, corrected by every batch.

Per (depth, length bucket) a straight line, fixed + per request, measured before the first request. Two numbers for all
of them follow the machine as it is now: ``slowdown``, the median run relative to the lines, and ``tail``, how far the
slowest of 100 runs lies above the median. What slows one depth (a busy neighbour, a lower clock) slows them all, and a
depth that has not run for a while must not keep a stale estimate.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# Quantile tracking by stochastic approximation (Robbins and Monro, 1951) on the logarithm: up by STEP * q when the
# observation is above the estimate, down by STEP * (1 - q) when below, which balances at quantile q.
STEP_P50 = 0.04
STEP_P99 = 0.10
# A run's tail is counted relative to its median plus this: being scheduled away costs a short run as many milliseconds
# as a long one, and a short run's bad luck must not be multiplied into a long one's estimate.
GRAIN_S = 0.005
LEAST_TAIL = 0.01
LEAST_LAG_S = 0.0002
# After so long without any run, a refusal halves the estimate: what refuses everything would never learn better.
DOUBT_AFTER_S = 1.0
# Tokens (requests x length) of the larger of the two batches that are measured per cell.
PROBE_TOKENS = 256
# Timed rounds that the start always takes, whatever its budget; the round before them only warms up.
ROUNDS = 3

Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of one undisturbed run of n requests: ``fixed_s + n * each_s``."""

    fixed_s: float
    each_s: float

    def at(self, requests: float) -> float:
        """Seconds for so many requests."""
        return self.fixed_s + requests * self.each_s


class Lag:
    """How long an answer takes from the engine to whoever waits for it: what 99 of 100 keep to.

    Tracked as the tail of a run is. Under load the event loop has other things to do, and an answer that only the
    engine made in time comes too late.
    """

    def __init__(self) -> None:
        self.p99_s = LEAST_LAG_S

    def observe(self, seconds: float) -> None:
        """Learn from one answer."""
        step = 0.99 if seconds > self.p99_s else -0.01
        self.p99_s = max(LEAST_LAG_S, self.p99_s * math.exp(STEP_P99 * step))


class CostModel:
    """p50 and p99 of a run by depth, length bucket and batch size. Locked by its owner, as Lanes are."""

    def __init__(self, lines: Mapping[Cell, Line], *, tail: float, slowdown: float = 1.0) -> None:
        self._lines = dict(lines)
        self._slowdown = slowdown
        self._tail = max(LEAST_TAIL, tail)
        self._seen_s = -math.inf

    def p50_s(self, depth: int, length: int, requests: int = 1) -> float:
        """Median seconds of one run."""
        return self._lines[depth, length].at(requests) * self._slowdown

    def each_s(self, depth: int, length: int) -> float:
        """Median seconds that one request more adds to a run."""
        return self._lines[depth, length].each_s * self._slowdown

    def p99_s(self, depth: int, length: int, requests: int = 1) -> float:
        """Seconds that 99 of 100 runs keep to."""
        p50_s = self.p50_s(depth, length, requests)
        return p50_s + self._tail * (p50_s + GRAIN_S)

    def largest(self, depth: int, length: int, time_s: float) -> int:
        """The most requests whose one run ends within the time at p99; 0 when not even one does."""
        line = self._lines[depth, length]
        p50_s = (time_s - self._tail * GRAIN_S) / (1 + self._tail)
        # A request that fits exactly must not be lost to rounding.
        return max(0, int((p50_s / self._slowdown - line.fixed_s) / line.each_s + 1e-6))

    def queue_s(self, ahead: Iterable[tuple[int, int, int]], batch_limit: Callable[[int], int]) -> float:
        """Median seconds until (depth, length, requests) lanes are worked off in batches of at most the limit."""
        total = 0.0
        for depth, length, requests in ahead:
            line = self._lines[depth, length]
            total += math.ceil(requests / batch_limit(length)) * line.fixed_s + requests * line.each_s
        return total * self._slowdown

    def observe(self, depth: int, length: int, requests: int, seconds: float, now_s: float) -> None:
        """Learn from one run."""
        p50_s = self.p50_s(depth, length, requests)
        above = (seconds - p50_s) / (p50_s + GRAIN_S)
        self._slowdown *= math.exp(STEP_P50 * (0.5 if seconds > p50_s else -0.5))
        self._tail = max(LEAST_TAIL, self._tail * math.exp(STEP_P99 * (0.99 if above > self._tail else -0.01)))
        self._seen_s = now_s

    def refused(self, now_s: float) -> None:
        """A request was refused because of these estimates; see DOUBT_AFTER_S."""
        if now_s - self._seen_s > DOUBT_AFTER_S:
            self._slowdown *= 0.5
            self._tail = max(LEAST_TAIL, self._tail * 0.5)
            self._seen_s = now_s


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
    fastest = {point: max(min(taken), 1e-9) for point, taken in samples.items()}
    slowdown = median(t / fastest[point] for point, taken in samples.items() for t in taken)
    typical = {point: slowdown * t for point, t in fastest.items()}
    above = sorted((t - typical[point]) / (typical[point] + GRAIN_S) for point, taken in samples.items() for t in taken)
    lines = {
        (depth, length): _line(fastest[depth, length, 1], fastest[depth, length, sizes[length]], sizes[length])
        for depth in depths
        for length in lengths
    }
    return CostModel(lines, tail=above[math.ceil(0.99 * len(above)) - 1], slowdown=slowdown)


def _line(one_s: float, many_s: float, many: int) -> Line:
    """The line through both points; noise must make neither a request free nor the fixed part negative."""
    each_s = min(max((many_s - one_s) / (many - 1), 0.01 * one_s), one_s)
    return Line(one_s - each_s, each_s)
