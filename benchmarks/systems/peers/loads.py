"""Which loads a server gets, and what is read from one: goodput within some times, and quality of what was in time."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fathom.benchmarks.http2_load import Report
from fathom.benchmarks.systems.peers.protocols import Answer, Protocol
from fathom.benchmarks.systems.routing_server import ServedCase, gain

#: The time that matters, and the other two.
WITHIN_MS, OTHER_MS = 25, (10, 50)
#: Offered loads, as multiples of what Fathom answers with 32 in flight: at the same depth, and of the quality sweep at
#: the deepest.
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)
SWEEP = (0.5, 1.0, 2.0, 5.0, 10.0)
#: Of what a server itself answers with 32 in flight, where that is less than the least of FACTORS.
OWN_SHARES = (0.7, 0.9)
#: Where deadlines of OTHER_MS are told.
OTHER_FACTORS = (1.0, 2.0)
#: Of a load, after which it may end early.
ENOUGH = 2_000
#: Share of its core that the client may use.
MOST_CLIENT = 0.8
#: Share of the requests answered within the longest time, below which a server gets no greater load.
COLLAPSED = 0.02


@dataclass(frozen=True)
class Load:
    """Offered: ``factor`` times ``base_per_s``, what ``of`` answers with 32 in flight; ``of``: a depth, or "own"."""

    of: str
    factor: float
    base_per_s: float
    deadline_ms: int = WITHIN_MS

    @property
    def per_s(self) -> float:
        """Requests per second in the mean."""
        return self.factor * self.base_per_s

    def lasts_s(self, seconds: float) -> float:
        """Until ENOUGH requests were due, at least half of ``seconds`` and at most all of them."""
        return min(seconds, max(seconds / 2, ENOUGH / self.per_s))

    @property
    def key(self) -> dict[str, Any]:
        """What names it in a stored run."""
        return {"of": self.of, "factor": self.factor, "deadline_ms": self.deadline_ms}


def planned(depth: int, base: Mapping[int, float], own_per_s: float | None, *, tells: bool) -> list[Load]:
    """The loads at a fixed depth, the smallest first.

    ``base``: requests/s of Fathom by depth, of which the greatest depth is that of the sweep. ``own_per_s``: of the
    server itself, None for Fathom.
    """
    loads = {(str(depth), factor): base[depth] for factor in FACTORS}
    loads |= {(str(max(base)), factor): base[max(base)] for factor in SWEEP}
    if own_per_s is not None and own_per_s < FACTORS[0] * base[depth]:
        loads |= {("own", share): own_per_s for share in OWN_SHARES}
    found = [Load(*key, per_s) for key, per_s in loads.items()]
    if tells:
        found += [Load(str(depth), factor, base[depth], ms) for factor in OTHER_FACTORS for ms in OTHER_MS]
    return sorted(found, key=lambda load: load.per_s)


def swept(base: Mapping[int, float]) -> list[Load]:
    """The loads of the quality sweep."""
    return [Load(str(max(base)), factor, base[max(base)]) for factor in SWEEP]


class Offered(NamedTuple):
    """What is offered: ``cases`` in turn, and the message of each."""

    cases: Sequence[ServedCase]
    messages: Sequence[bytes]


def run_all(loads: Iterable[Load], run: Callable[[Load], dict[str, Any]]) -> list[dict[str, Any]]:
    """Every load until the server has collapsed; ``run`` gives a row. Later ones have no row."""
    rows: list[dict[str, Any]] = []
    collapsed: set[int] = set()
    for load in loads:
        if load.deadline_ms in collapsed:
            continue
        row = run(load)
        rows.append(load.key | row)
        if "within" in row and row["in_time_at_most"] < COLLAPSED:
            collapsed.add(load.deadline_ms)
    return rows


def row_of(report: Report, protocol: Protocol, offered: Offered, deadline_ms: int, *, quality: bool) -> dict[str, Any]:
    """What one load has shown; no figures where the client itself was too busy for them.

    ``within``: milliseconds -> answers per second; where deadlines are told, of the one that was.
    """
    busy = report.cpu_s / report.seconds
    row: dict[str, Any] = {"offered_per_s": round(len(report.due_s) / report.seconds, 1), "client_cpu": round(busy, 3)}
    if busy > MOST_CLIENT:
        return row | {"thrown_away": True}
    answered = report.statuses == 0
    limits = (deadline_ms,) if protocol.tells else tuple(sorted((WITHIN_MS, *OTHER_MS)))
    within = {str(ms): int(np.count_nonzero(answered & (report.took_ms <= ms))) for ms in limits}
    row |= {
        "within": {ms: round(count / report.seconds, 2) for ms, count in within.items()},
        "in_time_at_most": round(max(within.values()) / max(1, len(report.due_s)), 4),
    }
    if deadline_ms == WITHIN_MS:
        row |= quality_of(report, protocol.decode, offered, ranked=quality)
    return row


def quality_of(report: Report, decode: Callable[[bytes], Answer], offered: Offered, *, ranked: bool) -> dict[str, Any]:
    """Quality-goodput and depths of what was answered within WITHIN_MS.

    ``ndcg``: NDCG@10, 0 for a request that was not answered in time; ``ndcg_in_time``: of the others alone, None where
    there are none. Both are left out unless ``ranked``: without the items that answer the requests.
    """
    timely = np.flatnonzero((report.statuses == 0) & (report.took_ms <= WITHIN_MS)).tolist()
    answers = [decode(report.answers[number]) for number in timely]
    depths = Counter(str(answer.depth) for answer in answers if answer.depth is not None)
    found: dict[str, Any] = {"depths": dict(sorted(depths.items(), key=lambda each: int(each[0])))}
    if ranked:
        count = len(offered.cases)
        gains = [
            gain(answer.items, offered.cases[number % count]) for number, answer in zip(timely, answers, strict=True)
        ]
        found["ndcg"] = round(sum(gains) / max(1, len(report.due_s)), 6)
        found["ndcg_in_time"] = round(sum(gains) / len(gains), 6) if gains else None
    return found
