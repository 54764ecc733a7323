"""A server at half of its capacity for an hour: does it grow, does it slow down, does it fail.

A quarter each: a history, a user with one item more, a user_id after an append, a batch of three; at
random moments, at half the rate that a closed loop reaches. The last minute is no harder than the first: the server
keeps GROWS events of a user, and a history that has grown by as many begins again. Per minute: latency from the moment
a request is due, resident memory (the median of a reading per second), threads, open files; all of these also before
the load and after it. With --workers 2 --reloads 50 --kills 20, so many an hour: bundles are exchanged, and workers
killed; memory, threads and files are then those of all processes together. Writes results/soak.json, with reloads or
kills results/soak-disturbed.json.
"""

import asyncio
import random
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from statistics import median, median_high
from typing import Any, NamedTuple

import numpy as np
import psutil

from fathom.benchmarks.load import closed_loop, open_loop
from fathom.benchmarks.markdown import paragraphs
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, on_core, started
from fathom.benchmarks.systems.disturber import Disturber, publish_version
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.client import AsyncClient, Event, Query
from fathom.errors import ConfigError, FathomError
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SEED = 0
WARM_UP_S, MINUTE_S = 60.0, 60.0
#: After the load, before what the server uses is read.
REST_S = 5.0
#: In which a client hears that a worker is gone.
NOTICED_S = 1.0
CHANNELS = 4
CONCURRENT = 16
PROBES = 1_000
GROWS = 20
LONGEST = 180


class User:
    """Somebody whose history grows: here by up to GROWS items, on the server for ever."""

    def __init__(self, user_id: str, history: list[str], rng: random.Random) -> None:
        self.user_id = user_id
        self._rng = rng
        self._items = history
        self._first = min(len(history), LONGEST)
        self._here = rng.randrange(GROWS)

    @property
    def history(self) -> list[str]:
        """It as it is now."""
        return self._items[: self._first] + self._items[: self._here]

    def grow(self) -> list[str]:
        """It with one item more."""
        self._here = (self._here + 1) % GROWS
        return self.history

    def events(self, count: int) -> list[Event]:
        """New events for the server."""
        return [Event(uuid(self._rng), self._rng.choice(self._items), number) for number in range(count)]

    async def append(self, client: AsyncClient, count: int) -> None:
        """So many events more on the server."""
        await client.append_events(self.user_id, self.events(count))


def uuid(rng: random.Random) -> str:
    """An id that does not come twice."""
    return f"{rng.getrandbits(128):032x}"


class Traffic:
    """Random requests of all users."""

    def __init__(self, client: AsyncClient, histories: list[list[str]]) -> None:
        self._client = client
        self._random = random.Random(SEED)
        users = [User(f"user-{number}", history, self._random) for number, history in enumerate(histories) if history]
        self._random.shuffle(users)
        self._turn = cycle(users)
        self._users = users

    async def prepare(self) -> None:
        """Give the server its users."""
        for user in self._users:
            await user.append(self._client, GROWS)

    async def one(self) -> None:
        """Any of the four."""
        user = next(self._turn)
        kind = self._random.randrange(4)
        if kind == 0:
            await self._client.recommend(user.history)
        elif kind == 1:
            await self._client.recommend(user.grow())
        elif kind == 2:
            await user.append(self._client, 1)
            await self._client.recommend(user_id=user.user_id)
        else:
            await self._client.recommend_many([Query(user.history[-length:]) for length in (5, 20, 50)])


class Ended(NamedTuple):
    """A call: when it was due and when it ended, on the clock of ``time.perf_counter``, and how: "OK" or the error."""

    due_s: float
    ended_s: float
    status: str


class Reading(NamedTuple):
    """Of all processes of a server together."""

    rss_mb: float
    threads: int
    files: int


def read(pid: int) -> Reading:
    """What a server and its workers use now."""
    parent, found = psutil.Process(pid), []
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            found.append((process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()))
    return Reading(*(sum(column) for column in zip(*found, strict=True)))


async def offer(traffic: Traffic, rate: float, seconds: float, seed: int = SEED) -> list[Ended]:
    """Calls at random moments, and how all of them ended."""
    found: list[Ended] = []

    async def one(due_s: float) -> None:
        status = "OK"
        try:
            await traffic.one()
        except FathomError as error:
            status = type(error).__name__
        found.append(Ended(due_s, time.perf_counter(), status))

    await open_loop(lambda _, due_s: one(due_s), rate, count=int(rate * seconds), seed=seed)
    return found


async def minute_by_minute(
    server: StartedServer, histories: list[list[str]], minutes: int, disturber: Disturber, rates: tuple[float, float]
) -> dict[str, Any]:
    """The capacity, then half of it, minute by minute; ``rates``: reloads and kills an hour."""
    readings: list[Reading] = []

    async def watch() -> None:
        while True:
            readings.append(read(server.pid))
            await asyncio.sleep(1)

    rows: list[dict[str, Any]] = []
    ended: list[Ended] = []
    async with AsyncClient(server.address, channels=CHANNELS) as client:
        traffic = Traffic(client, histories)
        await traffic.prepare()
        await closed_loop(lambda _: traffic.one(), CONCURRENT, PROBES)
        capacity = await closed_loop(lambda _: traffic.one(), CONCURRENT, PROBES)
        await offer(traffic, capacity / 2, WARM_UP_S)
        before = read(server.pid)
        tasks = [asyncio.create_task(watch()), asyncio.create_task(disturber.run(client, *rates))]
        for minute in range(minutes):
            readings.clear()
            found = await offer(traffic, capacity / 2, MINUTE_S, minute)
            rows.append({"minute": minute, **_row(found, readings)})
            ended += found
        for task in tasks:
            task.cancel()
        transport = (await client.bundle()).transport
        await asyncio.sleep(REST_S)
    levels = {"before": before._asdict(), "after": read(server.pid)._asdict()}
    return {"transport": transport, **_summary(rows, capacity), **levels, **failures(ended, disturber)}


def _row(found: Sequence[Ended], readings: Sequence[Reading]) -> dict[str, Any]:
    took_ms = [(each.ended_s - each.due_s) * 1e3 for each in found if each.status == "OK"]
    return {
        "statuses": dict(Counter(each.status for each in found)),
        "p50_ms": round(float(np.quantile(took_ms, 0.5)), 2),
        "p99_ms": round(float(np.quantile(took_ms, 0.99)), 2),
        "rss_mb": round(median(each.rss_mb for each in readings), 2),
        "threads": median_high(each.threads for each in readings),
        "files": median_high(each.files for each in readings),
    }


def failures(ended: Sequence[Ended], disturber: Disturber) -> dict[str, Any]:
    """Calls that failed, and those of them that no killed worker explains."""
    failed = [each for each in ended if each.status != "OK"]
    explained = [
        each for each in failed if any(each.due_s - NOTICED_S < kill < each.ended_s for kill in disturber.kills_s)
    ]
    return {
        "failed": len(failed),
        "failed_without_a_kill": len(failed) - len(explained),
        "kills": len(disturber.kills_s),
        "exchanged": disturber.exchanged,
        "exchange_errors": disturber.errors,
    }


def _summary(rows: list[dict[str, Any]], capacity: float) -> dict[str, Any]:
    third = max(1, len(rows) // 3)
    first, last = rows[:third], rows[-third:]
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(capacity / 2, 1),
        "requests": sum(sum(row["statuses"].values()) for row in rows),
        "statuses": dict(sum((Counter(row["statuses"]) for row in rows), Counter())),
        "rss_grown": round(median(row["rss_mb"] for row in last) / median(row["rss_mb"] for row in first) - 1, 4),
        "p99_ms_first_third": round(median(row["p99_ms"] for row in first), 2),
        "p99_ms_last_third": round(median(row["p99_ms"] for row in last), 2),
        "threads": sorted({row["threads"] for row in rows}),
        "files": sorted({row["files"] for row in rows}),
        "rows": rows,
    }


def check(workers: int, kills: float) -> None:
    """Raises ConfigError where nobody would replace a worker that was killed."""
    if kills and workers < 2:
        raise ConfigError("--kills needs --workers 2 at least; nobody would start a single one again")


def measure(options: Namespace) -> Iterator[Run]:
    """Minute by minute."""
    check(options.workers, options.kills)
    name = Bundle.open(options.bundle).manifest.name
    dataset = Dataset.load(options.data)
    histories = [[dataset.item_ids[item] for item in sequence] for sequence in dataset.sequences]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        publish_version(options.bundle, repository, 1)
        store = ("--history-max-events", str(GROWS), "--history", f"sqlite:{folder}/h.db")
        workers = ("--workers", str(options.workers))
        with on_core(SERVER_CORE), started(repository, *store, *workers) as server, on_core(CLIENT_CORE):
            disturber, rates = Disturber(server.pid, options.bundle, repository), (options.reloads, options.kills)
            result = asyncio.run(minute_by_minute(server, histories, options.minutes, disturber, rates))
    given = {key: getattr(options, key) for key in ("minutes", "workers", "reloads", "kills")}
    run = "soak-disturbed" if any(rates) else "soak"
    yield Run({"bundle": name, **given, "warm_up_s": WARM_UP_S}, result, SEED, run)


def render(run: StoredRun) -> str:
    """One paragraph."""
    result, config = run["result"], run["config"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    before, after, rows = result["before"], result["after"], result["rows"]
    workers = f", {config['workers']} workers" if config["workers"] > 1 else ""
    is_disturbed = bool(config["reloads"] or config["kills"])
    disturbed = (
        f" Meanwhile {result['exchanged']} bundles were exchanged and {result['kills']} workers killed;"
        f" {result['failed']} calls failed, {result['failed_without_a_kill']} of them not in a worker that was killed."
    )
    return paragraphs(
        f"## {config['minutes']} minutes at half of the capacity{', with reloads and kills' * is_disturbed}",
        f"Transport {result['transport']}{workers}, {result['offered_per_s']:,.0f} calls/s of four kinds: {statuses}."
        f"{disturbed if is_disturbed else ''}"
        f" Resident memory {before['rss_mb']:.1f} MB before and {after['rss_mb']:.1f} MB after; by minute from"
        f" {rows[0]['rss_mb']:.1f} to {rows[-1]['rss_mb']:.1f} MB ({result['rss_grown']:+.1%} from the first third"
        f" to the last); p99 {result['p99_ms_first_third']:.1f} ms in the first third,"
        f" {result['p99_ms_last_third']:.1f} ms in the last (medians over minutes);"
        f" threads {_levels(before, after, 'threads', result)},"
        f" open files {_levels(before, after, 'files', result)}.",
    )


def _levels(before: Mapping[str, Any], after: Mapping[str, Any], what: str, result: Mapping[str, Any]) -> str:
    low, high = result[what][0], result[what][-1]
    return f"{before[what]} before and {after[what]} after ({low if low == high else f'{low} to {high}'} in between)"


BENCHMARK = Benchmark(
    __doc__,
    "62 min, the bundle's data, two cores",
    {"bundle": Path, "--data": Path, "--minutes": 60, "--workers": 1, "--reloads": 0.0, "--kills": 0.0},
    measure,
    of_runs(render, "soak", "soak-disturbed"),
)
