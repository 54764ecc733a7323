"""The processes of a server while it is watched: what each uses, and how its memory grows, like with like.

The parent is compared with itself, and so are workers that nobody killed. A worker in the place of a killed one starts
small, so such workers are compared at the same age: those of the first third of the run with those of the last.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

import psutil

from fathom.benchmarks.systems.soak.disturber import is_worker

#: Workers are compared by age in steps of so many seconds, without the first: they are still starting.
AGE_S = 60.0


class Used(NamedTuple):
    """What one process uses; ``age_s``: since it was started."""

    pid: int
    is_worker: bool
    age_s: float
    rss_mb: float
    threads: int
    files: int


class Reading(NamedTuple):
    """Of all processes of a server together."""

    rss_mb: float
    threads: int
    files: int


class Watched:
    """A server by the pid of its parent."""

    def __init__(self, pid: int) -> None:
        self._parent = psutil.Process(pid)
        self._workers: set[psutil.Process] = set()

    def read(self) -> list[Used]:
        """Each of its processes, now."""
        found = []
        for process in (self._parent, *self._parent.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                found.append(self._used(process))
        return found

    def _used(self, process: psutil.Process) -> Used:
        # Not yet, perhaps: a process that has just been forked still has its parent's command line.
        worker = process in self._workers or (process != self._parent and is_worker(process))
        if worker:
            self._workers.add(process)
        age_s, rss_mb = time.time() - process.create_time(), process.memory_info().rss / 2**20
        return Used(process.pid, worker, age_s, rss_mb, process.num_threads(), process.num_fds())


def together(found: Iterable[Used]) -> Reading:
    """What they use in all."""
    columns = zip(*((each.rss_mb, each.threads, each.files) for each in found), strict=True)
    return Reading(*map(sum, columns))


def memory_by_role(minutes: Sequence[Sequence[Sequence[Used]]], parent: int) -> dict[str, Any]:
    """Growth of resident memory from the first third of the minutes to the last; the readings of each minute are given.

    ``never_killed``: workers that were there in the first reading and the last, None where nobody was;
    ``replaced``: the others by their age in minutes, [] where no age was seen in both thirds.
    """
    third = max(1, len(minutes) // 3)
    first, last = (
        [each for minute in part for reading in minute for each in reading]
        for part in (minutes[:third], minutes[-third:])
    )
    at_ends = [{each.pid for each in reading if each.is_worker} for reading in (minutes[0][0], minutes[-1][-1])]
    stayed = set.intersection(*at_ends)
    return {
        "parent": _grown(*([each.rss_mb for each in part if each.pid == parent] for part in (first, last))),
        "never_killed": _stayed(first, last, stayed),
        "replaced": _replaced(first, last, stayed),
    }


def _grown(first_mb: Sequence[float], last_mb: Sequence[float]) -> dict[str, float]:
    first, last = median(first_mb), median(last_mb)
    return {"first_mb": round(first, 2), "last_mb": round(last, 2), "grown": round(last / first - 1, 4)}


def _stayed(first: Sequence[Used], last: Sequence[Used], stayed: set[int]) -> dict[str, Any] | None:
    """The one of them that has grown most."""
    found = [
        _grown(*([each.rss_mb for each in part if each.pid == pid] for part in (first, last))) for pid in sorted(stayed)
    ]
    return {"workers": len(found), **max(found, key=lambda each: each["grown"])} if found else None


def _replaced(first: Sequence[Used], last: Sequence[Used], stayed: set[int]) -> list[dict[str, Any]]:
    parts = [_by_age(part, stayed) for part in (first, last)]
    return [
        {
            "age_min": age,
            "workers": [len(part[age]) for part in parts],
            # The median over workers of each one's median: how long one was watched has no say.
            **_grown(*([median(values) for values in part[age].values()] for part in parts)),
        }
        for age in sorted(parts[0].keys() & parts[1].keys())
    ]


def _by_age(found: Sequence[Used], stayed: set[int]) -> Mapping[int, Mapping[int, list[float]]]:
    ages: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in found:
        if each.is_worker and each.pid not in stayed and each.age_s >= AGE_S:
            ages[int(each.age_s // AGE_S)][each.pid].append(each.rss_mb)
    return ages
