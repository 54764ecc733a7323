"""A server under load, minute by minute: what becomes of the calls, and what its processes use meanwhile."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, median_high
from typing import Any, NamedTuple

import numpy as np
import psutil

from fathom.benchmarks.load import closed_loop, open_loop
from fathom.benchmarks.server import StartedServer, cpu_s
from fathom.benchmarks.systems.soak.alarms import Alarms
from fathom.benchmarks.systems.soak.disturber import Disturber
from fathom.benchmarks.systems.soak.mixed import METHODS, MixedTraffic
from fathom.benchmarks.systems.soak.processes import Used, Watched, memory_by_role, together
from fathom.benchmarks.systems.soak.traffic import SEED, PlainTraffic, Traffic
from fathom.client import AsyncClient
from fathom.errors import FathomError, OverloadError

WARM_UP_S, MINUTE_S = 60.0, 60.0
#: After the load, before what the server uses is read.
REST_S = 5.0
#: In which a client hears that a worker is gone.
NOTICED_S = 1.0
#: On which calls take turns: so many that hardly ever all of them are one worker's.
CHANNELS = 8
CONCURRENT = 16
PROBES = 1_000
#: Of those that nothing explains, so many are stored with what they say.
MOST_ERRORS = 20
OK, REFUSED = "OK", "refused by rule"
#: What a killed worker does to a call; whatever else happens to one is not explained by it.
LOST = ("ConnectError", "UnavailableError")


class Ended(NamedTuple):
    """A call: when it was due and when it ended, on the clock of ``time.perf_counter``, and how.

    ``status``: OK, REFUSED (RESOURCE_EXHAUSTED with a hint when to try again) or the error.
    """

    due_s: float
    ended_s: float
    status: str
    kind: str = ""
    #: What the error says.
    text: str = ""


@dataclass(frozen=True)
class Plan:
    """How long, how hard, and what is to happen meanwhile; ``reloads`` and ``kills``: per hour."""

    minutes: int
    load: float = 0.5
    reloads: float = 0.0
    kills: float = 0.0

    @property
    def third(self) -> int:
        """Minutes of the first third, and of the last."""
        return max(1, self.minutes // 3)


@dataclass
class Watching:
    """What has been seen so far."""

    ended: list[Ended] = field(default_factory=list)
    #: By minute, then one for each second.
    readings: list[list[list[Used]]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def run(self, watched: Watched) -> None:
        """A reading per second, until it is cancelled."""
        while True:
            self.readings[-1].append(watched.read())
            await asyncio.sleep(1)


async def call(traffic: Traffic, due_s: float, ended: list[Ended]) -> None:
    """The next call, and how it ended."""
    status, text, (kind, waiting) = OK, "", traffic.pick()
    try:
        await waiting
    except FathomError as error:
        is_rule = isinstance(error, OverloadError) and error.retry_after_s is not None
        status, text = REFUSED if is_rule else type(error).__name__, str(error)
    ended.append(Ended(due_s, time.perf_counter(), status, kind, text))


async def probe(traffic: Traffic) -> float:
    """Calls per second of a closed loop; raises FathomError where one of them is not OK."""
    ended: list[Ended] = []
    per_s = await closed_loop(lambda _: call(traffic, time.perf_counter(), ended), CONCURRENT, PROBES)
    if failed := [each for each in ended if each.status != OK]:
        first = failed[0]
        raise FathomError(f"{len(failed)} calls failed before the load began, the first a {first.kind}: {first.text}")
    return per_s


async def offer(traffic: Traffic, rate: float, seconds: float, seed: int = SEED) -> list[Ended]:
    """Calls at random moments, and how all of them ended."""
    found: list[Ended] = []
    await open_loop(lambda _, due_s: call(traffic, due_s, found), rate, count=int(rate * seconds), seed=seed)
    return found


async def minute_by_minute(
    server: StartedServer, histories: list[list[str]], plan: Plan, disturber: Disturber, known: Sequence[str] = ()
) -> dict[str, Any]:
    """The capacity, then a share of it, minute by minute. ``known``: the bundle's items, for calls of all kinds."""
    async with AsyncClient(server.address, channels=CHANNELS) as client:
        if not known:
            traffic = PlainTraffic(client, histories)
            return await _soak(server, client, traffic, plan, disturber, None)
        mixed = MixedTraffic(client, server.address, histories, known, await client.bundle())
        try:
            alarms = Alarms(client, CHANNELS)
            result = await _soak(server, client, mixed, plan, disturber, alarms)
        finally:
            await mixed.close()
        called = mixed.called + Counter({"Reload": disturber.exchanged})
        return {**result, "alarms": alarms.found(), "called": {method: called[method] for method in METHODS}}


async def _soak(
    server: StartedServer,
    client: AsyncClient,
    traffic: PlainTraffic | MixedTraffic,
    plan: Plan,
    disturber: Disturber,
    alarms: Alarms | None,
) -> dict[str, Any]:
    await traffic.prepare()
    await probe(traffic)
    capacity = await probe(traffic)
    await offer(traffic, capacity * plan.load, WARM_UP_S)
    watched, seen = Watched(server.pid), Watching()
    before, spent_s, began_s = together(watched.read()), _own_cpu_s(), time.perf_counter()
    seen.readings.append([watched.read()])
    tasks = [
        asyncio.create_task(disturber.run(client, plan.reloads, plan.kills)),
        asyncio.create_task(seen.run(watched)),
    ]
    if alarms is not None:
        tasks.append(asyncio.create_task(alarms.run()))
    for minute in range(plan.minutes):
        if minute:
            seen.readings.append([watched.read()])
        if isinstance(traffic, MixedTraffic) and alarms is not None:
            traffic.shifted = alarms.shifted = plan.third <= minute < plan.minutes - plan.third
        found = await offer(traffic, capacity * plan.load, MINUTE_S, minute)
        seen.rows.append({"minute": minute, **_row(found, seen.readings[-1])})
        seen.ended += found
    cpu = (_own_cpu_s() - spent_s) / (time.perf_counter() - began_s)
    await _end(tasks)
    transport = (await client.bundle()).transport
    await asyncio.sleep(REST_S)
    levels = {"before": before._asdict(), "after": together(watched.read())._asdict()}
    return {
        "transport": transport,
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(capacity * plan.load, 1),
        **_summary(seen.rows, plan.third),
        **levels,
        **failures(seen.ended, disturber),
        "kinds": kinds(seen.ended),
        "memory": memory_by_role(seen.readings, server.pid),
        "client_cpu": round(cpu, 3),
    }


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel them; what one of them has raised before is raised here."""
    for task in tasks:
        task.cancel()
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(found, Exception):
            raise found


def _own_cpu_s() -> float:
    return cpu_s(psutil.Process())


def _row(found: Sequence[Ended], readings: Sequence[Sequence[Used]]) -> dict[str, Any]:
    totals = [together(each) for each in readings]
    return {
        "statuses": dict(Counter(each.status for each in found)),
        **_latency(found),
        "rss_mb": round(median(each.rss_mb for each in totals), 2),
        "threads": median_high(each.threads for each in totals),
        "files": median_high(each.files for each in totals),
    }


def _latency(found: Sequence[Ended]) -> dict[str, float | None]:
    """From when a call was due; None where none was answered."""
    took_ms = [(each.ended_s - each.due_s) * 1e3 for each in found if each.status == OK]
    return {
        f"p{percent}_ms": round(float(np.quantile(took_ms, percent / 100)), 2) if took_ms else None
        for percent in (50, 99)
    }


def kinds(ended: Sequence[Ended]) -> dict[str, dict[str, Any]]:
    """Of each kind of calls: how many ended how, and how long they took."""
    found: Mapping[str, list[Ended]] = defaultdict(list)
    for each in ended:
        found[each.kind].append(each)
    return {
        kind: {"statuses": dict(Counter(each.status for each in calls)), **_latency(calls)}
        for kind, calls in sorted(found.items())
    }


def failures(ended: Sequence[Ended], disturber: Disturber) -> dict[str, Any]:
    """Calls that failed, and those of them that no killed worker explains; what was refused by rule is neither."""
    failed = [each for each in ended if each.status not in (OK, REFUSED)]
    unexplained = [
        each
        for each in failed
        if each.status not in LOST
        or not any(each.due_s - NOTICED_S < kill < each.ended_s for kill in disturber.kills_s)
    ]
    return {
        "first_errors": [f"{each.kind}: {each.status}: {each.text}" for each in unexplained[:MOST_ERRORS]],
        "refused": sum(each.status == REFUSED for each in ended),
        "failed": len(failed),
        "failed_without_a_kill": len(unexplained),
        "kills": len(disturber.kills_s),
        "exchanged": disturber.exchanged,
        "exchange_errors": disturber.errors,
    }


def _summary(rows: list[dict[str, Any]], third: int) -> dict[str, Any]:
    first, last = rows[:third], rows[-third:]

    def median_of(part: list[dict[str, Any]], what: str) -> float:
        values = [row[what] for row in part if row[what] is not None]
        if not values:
            raise FathomError("for a third of the time no call was answered")
        return round(float(median(values)), 2)

    return {
        "requests": sum(sum(row["statuses"].values()) for row in rows),
        "statuses": dict(sum((Counter(row["statuses"]) for row in rows), Counter())),
        "rss_grown": round(median_of(last, "rss_mb") / median_of(first, "rss_mb") - 1, 4),
        "p99_ms_first_third": median_of(first, "p99_ms"),
        "p99_ms_last_third": median_of(last, "p99_ms"),
        "threads": sorted({row["threads"] for row in rows}),
        "files": sorted({row["files"] for row in rows}),
        "rows": rows,
    }
