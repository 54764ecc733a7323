"""Measures what requests cost a server's core: a real server on a core of its own, asked from another one.

Each depth and length of history is asked for alone, one request after the other, and then at random moments, at two
rates, and so many at a time that the core is full. The processor time of the server's process per request, against the
number of requests per engine run, gives a line. What else becomes of the core, ``scheduling`` finds. Linux only: it
reads the times of threads from /proc.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.request import urlopen

import grpc
import numpy as np

from fathom.client import Client, Event, error_of
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError, UnavailableError
from fathom.local import Local, on_core, running_server
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import Manifest
from fathom.runtime.padding import length_buckets
from fathom.tools.capacity.costs import REMEMBERED, CellCost, Load, MeasuredCosts
from fathom.tools.capacity.scheduling import stalls, wake_delays
from fathom.tools.doctor import machine

SERVER_CORE, CLIENT_CORE = 0, 1
METHOD = "/fathom.v1.Recommender/Recommend"
#: Calls in flight while the highest rate is looked for, and the shares of it that are then asked for.
IN_FLIGHT, LOADS = 32, (0.5, 0.8)
TIMEOUT_S = 30.0
#: Requests that say which depths a server chooses, and how many of them go together; histories that come back so that
#: they are remembered.
ROUTED, BLOCK, RETURNING = 1000, 50, 16
#: Quantiles that are kept of a distribution.
QUANTILES = (np.arange(100) + 0.5) / 100
#: To measure what the history of a user takes: users, and events of each.
USERS, EVENTS = 50, 100
#: Options of every server that is measured. Without feedback: random histories are not like those that the certificate
#: was made from, and an alarm would send everything to the deepest depth.
OPTIONS = ("--metrics-port", "0", "--history", "memory", "--feedback-share", "0")
#: What lies further above the median was a stall, and is counted as such.
MOST_JITTER = 1.5
Answers = list[tuple[float, bytes]]


@dataclass(frozen=True)
class Questions:
    """What a server is asked: the ids of the catalogue, and lengths of histories (0: remembered) at depths.

    ``cases``: histories whose depths the server chooses.
    """

    ids: Sequence[str]
    depths: Sequence[int]
    lengths: Sequence[int]
    cases: Sequence[Sequence[str]]
    cases_of: str

    @classmethod
    def of(cls, bundle: Path, profile: str, cases: Sequence[Sequence[str]], cases_of: str) -> "Questions":
        """At every depth that a profile allows; without ``cases``, of random items, as many as the network reads.

        Raises BundleError, ConfigError where the profile allows none of the bundle's depths.
        """
        with Bundle.open(bundle) as opened:
            ids, manifest = list(opened.catalogue.ids), opened.manifest
        allowed = load_profile(profile).depths
        depths = [depth for depth in manifest.served_depths if depth in allowed]
        if not any(depths):
            raise ConfigError(f"{bundle}: the bundle has an engine for none of the depths of profile {profile}")
        longest = manifest.model.max_history
        if not cases:
            rng = np.random.default_rng(0)
            cases = [[ids[item] for item in rng.integers(len(ids), size=longest)] for _ in range(ROUTED)]
            cases_of = f"random items, {longest} each, the most that the network reads"
        buckets = length_buckets(longest)
        used = [min(max(len(case), 1), longest) for case in cases]
        marks = [next(end for end in buckets if end >= np.quantile(used, share)) for share in (0.05, 0.5, 1.0)]
        return cls(ids, depths, sorted({REMEMBERED, *marks}), cases, cases_of)

    def messages(self, depth: int, length: int) -> Iterator[bytes]:
        """Encoded requests with random histories, none of which comes twice; unless they are to be remembered."""
        rng = np.random.default_rng((depth, length))
        size = length or max(self.lengths)
        while True:
            histories = rng.integers(len(self.ids), size=(RETURNING, size))
            made = [
                pb.RecommendRequest(item_ids=[self.ids[item] for item in row], k=10, depth=depth).SerializeToString()
                for row in histories
            ]
            yield from made
            while length == REMEMBERED:
                yield from made


def measure(
    bundle: Path, profile: str, questions: Questions, seconds: float, progress: Callable[[str], None]
) -> MeasuredCosts:
    """Serve a bundle as a profile says, and measure it; ``seconds``: of each load.

    Raises BundleError, ConfigError, UnavailableError.
    """
    if not Path("/proc/self/schedstat").exists():
        raise ConfigError("capacity is measured on Linux only: it reads the times of threads from /proc")
    with (
        on_core(SERVER_CORE),
        running_server(bundle, "--profile", profile, *OPTIONS) as server,
        on_core(CLIENT_CORE),
        Bundle.open(bundle) as opened,
    ):
        return measure_server(server, opened.manifest, profile, questions, seconds, progress)


def measure_server(
    server: Local,
    manifest: Manifest,
    profile: str,
    questions: Questions,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> MeasuredCosts:
    """The same of a server that runs already, with OPTIONS, on a core of its own."""
    stalls_s, worked_s = stalls(SERVER_CORE)
    found = {
        (depth, length): _measured(server, questions, depth, length, seconds, progress)
        for depth in questions.depths
        for length in (questions.lengths if depth else questions.lengths[-1:])
    }
    zero = next((each.loads[-1].cpu_us for (depth, _), each in found.items() if not depth), None)
    found = {cell: each for cell, each in found.items() if cell[0]}
    cells = tuple(_cell(depth, length, each) for (depth, length), each in found.items())
    progress("the mix of depths, and memory")
    mix, choosing_us = asyncio.run(_routed(server, questions.cases))
    again = _measured(server, questions, cells[-1].depth, cells[-1].history, seconds, progress).loads
    later_s, more_s = stalls(SERVER_CORE)
    stalls_s, worked_s = [*stalls_s, *later_s], worked_s + more_s
    delays_s = wake_delays(SERVER_CORE, CLIENT_CORE)
    process_mb, cache_bytes = _resident_mb(server.pid), _total(_metrics(server), "fathom_reuse_bytes")
    longest = manifest.model.max_history
    used = [min(len(case), longest) for case in questions.cases]
    alone = np.concatenate([each.jitter for each in found.values()])
    jitter = np.quantile(np.minimum(alone, MOST_JITTER), QUANTILES)
    return MeasuredCosts(
        bundle=manifest.name,
        bundle_version=manifest.version,
        profile=profile,
        machine=machine(),
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        mix=mix,
        histories=tuple(np.quantile(used, QUANTILES, method="nearest").astype(int).tolist()),
        histories_of=questions.cases_of,
        cells=cells,
        count_us=zero,
        choosing_us=round(choosing_us, 2),
        spread=round(_spread([*cells, cells[-1].model_copy(update={"loads": again})]), 4),
        jitter=tuple((jitter / jitter.mean()).round(4).tolist()),
        delays_us=tuple((np.quantile(delays_s, QUANTILES) * 1e6).round(1).tolist()),
        stalls_per_s=round(len(stalls_s) / worked_s, 3),
        stalls_us=tuple((np.quantile(stalls_s or [0.0], QUANTILES) * 1e6).round(1).tolist()),
        wire_us=round(max(0.0, median(each.wire_us for each in found.values())), 1),
        mixes=len(manifest.depths[max(manifest.depths)].segments) > 1,
        process_mb=round(process_mb, 1),
        cache_mb=round(cache_bytes / 2**20, 1),
        event_bytes=round(_event_bytes(server, questions.ids), 1),
    )


def _measured(
    server: Local, questions: Questions, depth: int, length: int, seconds: float, progress: Callable[[str], None]
) -> "_Found":
    progress(f"depth {depth}, {f'histories of {length}' if length else 'remembered histories'}")
    try:
        return asyncio.run(_loads(server, questions.messages(depth, length), seconds))
    except grpc.aio.AioRpcError as error:
        raise error_of(server.address, error) from None


class _Found(NamedTuple):
    loads: tuple[Load, ...]
    engine_share: float
    jitter: list[float]
    wire_us: float


class _Spent(NamedTuple):
    """By a server so far: processor seconds, those of each thread but the event loop's, requests and engine runs."""

    cpu_s: float
    threads_s: dict[str, float]
    requests: float
    runs: float

    @classmethod
    def by(cls, server: Local) -> "_Spent":
        text = _metrics(server)
        requests, runs = (_total(text, f"fathom_batch_size_{part}") for part in ("sum", "count"))
        threads_s = {
            task.name: int((task / "schedstat").read_text().split()[0]) / 1e9
            for task in Path(f"/proc/{server.pid}/task").iterdir()
            if task.name != str(server.pid)
        }
        return cls(_cpu_s(server), threads_s, requests, runs)


async def _loads(server: Local, messages: Iterator[bytes], seconds: float) -> _Found:
    """One request after the other, then random moments at two rates, then IN_FLIGHT at a time."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

        async def ask() -> tuple[float, bytes]:
            begin = time.perf_counter()
            answer: bytes = await call(next(messages), timeout=TIMEOUT_S)
            return time.perf_counter() - begin, answer

        await _closed(ask, 1, seconds / 10)
        client_s = time.process_time()
        answers, first, _ = await _watched(server, _closed(ask, 1, seconds))
        client_us = (time.process_time() - client_s) / len(answers) * 1e6
        answered, full, _ = await _watched(server, _closed(ask, IN_FLIGHT, seconds))
        most = len(answered) / seconds
        loads, share = [first], 1.0
        for part in LOADS:
            _, load, share = await _watched(server, _random(ask, part * most, seconds))
            loads.append(load)
        loads.append(full)
    totals = np.array([pb.RecommendResponse.FromString(answer).timings.total_us for _, answer in answers], float)
    wire_us = median(took_s for took_s, _ in answers) * 1e6 - first.cpu_us - client_us
    return _Found(tuple(loads), share, (totals / np.median(totals)).tolist(), wire_us)


async def _watched(server: Local, load: Coroutine[Any, Any, Answers]) -> tuple[Answers, Load, float]:
    """A load, what it cost, and the engine's share of that."""
    before = _Spent.by(server)
    answers = await load
    after = _Spent.by(server)
    cpu_s, runs = after.cpu_s - before.cpu_s, after.runs - before.runs
    if not answers:
        raise UnavailableError("the server answered nothing while it was measured; try again")
    # At depth 0, and with histories that are remembered whole, the engine does not run.
    batch = (after.requests - before.requests) / runs if runs else 1.0
    # The busiest of the others is the engine's.
    engine_s = max(now_s - before.threads_s.get(name, 0.0) for name, now_s in after.threads_s.items())
    share = min(1.0, max(0.01, engine_s / cpu_s))
    return answers, Load(batch=round(batch, 3), cpu_us=round(cpu_s / len(answers) * 1e6, 2)), share


async def _closed(
    ask: Callable[[], Coroutine[Any, Any, tuple[float, bytes]]], in_flight: int, seconds: float
) -> Answers:
    """So many requests in flight at any moment."""
    end_s = time.perf_counter() + seconds
    answers: Answers = []

    async def caller() -> None:
        while time.perf_counter() < end_s:
            answers.append(await ask())

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return answers


async def _random(ask: Callable[[], Coroutine[Any, Any, tuple[float, bytes]]], per_s: float, seconds: float) -> Answers:
    """Poisson arrivals, however slow the answers are."""
    rng, begin = np.random.default_rng(0), time.perf_counter()
    due_s, tasks = rng.exponential(1 / per_s), []
    while due_s < seconds:
        await asyncio.sleep(max(0.0, begin + due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask()))
        due_s += rng.exponential(1 / per_s)
    return await asyncio.gather(*tasks)


async def _routed(server: Local, cases: Sequence[Sequence[str]]) -> tuple[dict[int, float], float]:
    """The shares of the depths that a server chooses without a deadline, and what a request takes more because of it.

    Each history comes back with its items in reverse, at a fixed depth: the one that was chosen before.
    """
    counts: Counter[int] = Counter()
    more_s = 0.0
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

        async def ask(case: Sequence[str], depth: int | None) -> int:
            message = pb.RecommendRequest(item_ids=case, k=10, depth=depth).SerializeToString()
            return pb.RecommendResponse.FromString(await call(message, timeout=TIMEOUT_S)).depth

        for first in range(0, min(len(cases), ROUTED), BLOCK):
            block = cases[first : min(first + BLOCK, ROUTED)]
            begin_s = _cpu_s(server)
            depths = [await ask(case, None) for case in block]
            between_s = _cpu_s(server)
            for case, depth in zip(block, depths, strict=True):
                await ask(case[::-1], depth)
            more_s += 2 * between_s - begin_s - _cpu_s(server)
            counts.update(depths)
    mix = {depth: round(count / counts.total(), 4) for depth, count in sorted(counts.items())}
    return mix, max(0.0, more_s / counts.total() * 1e6)


def _cpu_s(server: Local) -> float:
    """Processor time of a server so far, by its clock, numbered as clock_getcpuclockid(3) does."""
    return time.clock_gettime(~server.pid << 3 | 2)


def _spread(cells: Sequence[CellCost]) -> float:
    """Standard deviation of the logarithm of what loads cost by what their lines say."""
    ratios = [
        load.cpu_us / (cell.each_us + cell.fixed_us / load.batch)
        for cell in cells
        if cell.history != REMEMBERED
        for load in cell.loads
    ]
    return float(np.sqrt(np.mean(np.log(ratios) ** 2)))


def _cell(depth: int, length: int, found: _Found) -> CellCost:
    """The line through the loads: processor time per request is ``each + fixed / batch``.

    By least relative errors: a full core, where a request costs the least, is where a per cent matters most.
    """
    inverse = np.array([1 / load.batch for load in found.loads])
    cpu_us = np.array([load.cpu_us for load in found.loads])
    fixed_us, weights = 0.0, cpu_us**-2
    if length == REMEMBERED:
        # Runs are not counted: one request alone is a run of its own, and under load each costs the least.
        fixed_us, inverse = max(0.0, cpu_us[0] - cpu_us[1:].mean()), np.array([1.0, *([0.0] * (len(cpu_us) - 1))])
        weights = np.ones_like(cpu_us)
    elif np.ptp(inverse) > 1e-3:
        fixed_us = max(0.0, float(np.polyfit(inverse, cpu_us, 1, w=np.sqrt(weights))[0]))
    each_us = float(max(0.01 * cpu_us.min(), np.average(cpu_us - fixed_us * inverse, weights=weights)))
    return CellCost(
        depth=depth,
        history=length,
        fixed_us=round(fixed_us, 2),
        each_us=round(each_us, 2),
        engine_share=round(found.engine_share, 4),
        loads=found.loads,
    )


def _metrics(server: Local) -> str:
    assert server.metrics_address is not None, "it is served with OPTIONS"
    with urlopen(f"http://{server.metrics_address}/metrics", timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _total(metrics: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = (line for line in metrics.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _event_bytes(server: Local, ids: Sequence[str]) -> float:
    before = _total(_metrics(server), "fathom_history_bytes")
    with Client(server.address) as client:
        for user in range(USERS):
            events = [Event(f"{user} {number}", ids[number % len(ids)], number) for number in range(EVENTS)]
            client.append_events(f"user {user}", events)
    return (_total(_metrics(server), "fathom_history_bytes") - before) / (USERS * EVENTS)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
