"""From measured costs and the traffic that is expected to cores, machines and money."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.runtime.padding import length_buckets
from fathom.tools.capacity.costs import REMEMBERED, MeasuredCosts
from fathom.tools.capacity.simulation import Outcome, Rules, Traffic, most_per_s, simulate

DAY_S = 86_400
#: 365 days of 24 hours, a twelfth.
HOURS_A_MONTH = 730
#: Requests of one simulation: the 99th percentile of so many rests on two hundred.
REQUESTS = 20_000
SEED = 0
#: Share of the requests that has to be answered, and within the deadline where there is one.
LEAST_ANSWERED = 0.99
#: A measured cost may be wrong by so many of its standard deviations.
SPREADS = 2
#: A core that works for so much of the time is full.
FULL = 0.98

#: Of the fields of a wish; the least that is more than 0 stands for "above 0".
_ABOVE_0, _BELOW_1 = math.ulp(0.0), math.nextafter(1.0, 0.0)
_BOUNDS = {
    "users": (_ABOVE_0, 1e11),
    "requests_per_day": (_ABOVE_0, 1e6),
    "peak_factor": (1.0, 1e3),
    "deadline_ms": (1.0, 1e6),
    "p99_ms": (_ABOVE_0, 1e6),
    "headroom": (0.0, _BELOW_1),
    "cores_per_machine": (1.0, 1e4),
    "memory_gb": (_ABOVE_0, 1e6),
    "price_per_hour": (0.0, 1e6),
    "cache_hits": (0.0, 1.0),
    "most_shallower": (0.0, 1.0),
    "history_events": (0.0, 1e4),
}


def _words(least: float, most: float) -> str:
    above = "above 0" if least == _ABOVE_0 else f"at least {least:g}"
    return f"{above} and {'below 1' if most == _BELOW_1 else f'at most {most:g}'}"


@dataclass(frozen=True)
class Wish:
    """What a deployment is to bear, and how.

    ``headroom``: the part of a core that stays free at the peak. ``cache_hits``: the share of requests whose history
    the prefix cache holds whole. ``most_shallower``: the share that may get a shallower depth than it wants, since the
    deadline is near. ``depth``: fixed by every request; None: the policy's. ``history_events``: kept of each user by
    the servers; 0: requests bring their histories. ``memory_gb`` and ``price_per_hour``: of a machine.
    """

    users: float
    requests_per_day: float
    peak_factor: float = 3.0
    deadline_ms: float | None = 100.0
    p99_ms: float = 50.0
    headroom: float = 0.3
    cores_per_machine: int = 4
    memory_gb: float | None = None
    price_per_hour: float | None = None
    cache_hits: float = 0.0
    most_shallower: float = 0.05
    depth: int | None = None
    history_events: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} is {value:g}; it must be {_words(least, most)}")

    @property
    def mean_per_s(self) -> float:
        """Requests per second on average."""
        return self.users * self.requests_per_day / DAY_S


@dataclass(frozen=True)
class CoreCapacity:
    """The highest rate that one core bears, and what it does there at worst; ``binds``: CPU, p99, deadline or depth."""

    per_s: float
    p50_ms: float
    p99_ms: float
    busy: float
    shallower: float
    binds: str


@dataclass(frozen=True)
class Plan:
    """What a deployment needs. ``machines``: those that the peak takes; one more stands by, so that one may fail."""

    mean_per_s: float
    peak_per_s: float
    mix: Mapping[int, float]
    core: CoreCapacity
    cores: int
    processes_per_machine: int
    machines: int
    memory_gb_per_machine: float
    history_gb_per_machine: float
    binds: str
    price_per_month: float | None
    price_per_million: float | None
    wish: Wish


class CoreModel:
    """One core under the traffic of a wish, simulated; ``max_history``: of the network."""

    def __init__(self, costs: MeasuredCosts, profile: DeviceProfile, max_history: int, wish: Wish) -> None:
        if wish.depth is not None and wish.depth not in costs.depths:
            served = ", ".join(map(str, costs.depths))
            raise ConfigError(f"depth {wish.depth} is not among the depths that were measured: {served}")
        ends = length_buckets(max_history)
        counts = Counter(next(end for end in ends if end >= length) for length in costs.histories)
        known = {end: count / counts.total() * (1 - wish.cache_hits) for end, count in sorted(counts.items())}
        lengths = {REMEMBERED: wish.cache_hits, **known} if wish.cache_hits else known
        self.mix = costs.mix if wish.depth is None else {wish.depth: 1.0}
        self._wish = wish
        self._core_at = partial(costs.core, profile, tuple(lengths), chooses=wish.depth is None)
        #: Factors of the costs that have to be reckoned with.
        self.costs_range = math.exp(-SPREADS * costs.spread), math.exp(SPREADS * costs.spread)
        deadline_s = math.inf if wish.deadline_ms is None else wish.deadline_ms / 1e3
        self._rules = Rules(profile, costs.depths, deadline_s, fixed=wish.depth is not None)
        self._traffic = Traffic.drawn(REQUESTS, self.mix, lengths, SEED)
        #: Requests per second at which batches without end would keep the core busy all the time.
        core = self._core_at()
        each_s = {
            depth: sum(core.lines[depth, end].each_s * part for end, part in lengths.items())
            for depth in self.mix
            if depth
        }
        each_mean_s = sum(part * each_s.get(depth, core.count_s) for depth, part in self.mix.items())
        self.limit_per_s = 1 / (each_mean_s + core.choosing_s)

    def at(self, per_s: float, slower: float = 1.0) -> Outcome:
        """What becomes of requests at this rate, where everything costs ``slower`` times what was measured."""
        return simulate(self._core_at(slower=slower), self._rules, self._traffic, per_s, seed=SEED)

    def capacity(self) -> CoreCapacity:
        """The highest rate at which the wish comes true even at the highest costs of ``costs_range``.

        Raises ConfigError where there is none.
        """
        why: dict[float, str] = {}
        highest = self.costs_range[1]

        def sustained(per_s: float) -> bool:
            why[per_s] = self._missed(self.at(per_s, highest))
            return not why[per_s]

        per_s = most_per_s(sustained, self.limit_per_s)
        binds = next((why[rate] for rate in sorted(why) if why[rate]), "CPU")
        if not per_s:
            raise ConfigError(
                f"not even a few requests per second come true: {binds} stands in the way; allow more time"
            )
        outcome = self.at(per_s, highest)
        p50_ms, p99_ms = (outcome.quantile_s(share) * 1e3 for share in (0.5, 0.99))
        return CoreCapacity(per_s, p50_ms, p99_ms, outcome.busy, outcome.shallower(), binds)

    def _missed(self, outcome: Outcome) -> str:
        wish = self._wish
        missed = ""
        if outcome.in_time(self._rules.deadline_s) < LEAST_ANSWERED:
            missed = "deadline"
        elif outcome.shallower() > wish.most_shallower:
            missed = "depth"
        elif outcome.quantile_s(0.99) * 1e3 > wish.p99_ms:
            missed = "p99"
        return "CPU" if missed and outcome.busy >= FULL else missed


def plan(wish: Wish, costs: MeasuredCosts, profile: DeviceProfile, max_history: int) -> Plan:
    """What a wish takes; one process per core, and users spread evenly.

    Raises ConfigError where not even one process comes true, or fits into a machine's memory.
    """
    model = CoreModel(costs, profile, max_history, wish)
    core, peak_per_s = model.capacity(), wish.mean_per_s * wish.peak_factor
    cores = max(1, math.ceil(peak_per_s / (core.per_s * (1 - wish.headroom))))
    history_gb = wish.users * wish.history_events * costs.event_bytes / 2**30
    machines, processes = _machines(wish, cores, costs.process_mb / 1024, history_gb)
    paid = None if wish.price_per_hour is None else (machines + 1) * wish.price_per_hour * HOURS_A_MONTH
    millions = wish.mean_per_s * HOURS_A_MONTH * 3600 / 1e6
    return Plan(
        mean_per_s=wish.mean_per_s,
        peak_per_s=peak_per_s,
        mix=model.mix,
        core=core,
        cores=cores,
        processes_per_machine=processes,
        machines=machines,
        memory_gb_per_machine=processes * costs.process_mb / 1024 + history_gb / machines,
        history_gb_per_machine=history_gb / machines,
        binds=core.binds if machines == math.ceil(cores / wish.cores_per_machine) else "memory",
        price_per_month=paid,
        price_per_million=None if paid is None else paid / millions,
        wish=wish,
    )


def _machines(wish: Wish, cores: int, process_gb: float, history_gb: float) -> tuple[int, int]:
    """The fewest machines, and the processes of each, that have the cores and the memory."""
    machines, memory_gb = math.ceil(cores / wish.cores_per_machine), wish.memory_gb
    if memory_gb is None:
        return machines, wish.cores_per_machine
    if memory_gb < process_gb:
        raise ConfigError(f"a process takes {process_gb:.2f} GB, and a machine has {memory_gb:g} GB: give it more")
    # Of the whole histories each machine holds its part; at least one process has to fit beside it.
    machines = max(machines, math.ceil(history_gb / memory_gb))
    while True:
        room_gb = memory_gb - history_gb / machines
        processes = min(wish.cores_per_machine, int(room_gb / process_gb + 1e-9))
        if machines * processes >= cores:
            return machines, processes
        machines += 1
