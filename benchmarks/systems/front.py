"""What gRPC and everything else around the engine cost: the server over each transport, against an echo.

The echo is a bare grpc.aio server that decodes the same requests and encodes one of the server's own answers. All take
turns, each time in a new process on a core of its own; the client has another. Histories of 50 random items, each of
which comes once, so that no cache helps; server settings are the defaults. 32 calls in flight at two depths: requests
per second, and the processor time of each by thread. One call at a time: latency, beside a bare grpc.aio server that
runs the same engine in its event loop, and against the engine and its search alone: one run after the other, and after
a pause as long as a request takes, in which a core's caches are used for something else. Writes results/front.json.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import grpc
import numpy as np

from fathom.benchmarks.http2_load import Report, closed
from fathom.benchmarks.load import HISTORY, K, made_up
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.peer_servers import by_hand
from fathom.benchmarks.peer_servers.messages import asked
from fathom.benchmarks.peer_servers.recommender import Recommender
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import (
    METHOD,
    StartedServer,
    ThreadTime,
    catalogue_ids,
    on_core,
    started,
    started_module,
    threads_of,
)
from fathom.benchmarks.systems import echo_server
from fathom.errors import FathomError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest_file import read_manifest

DEPTHS = (4, 16)
TRANSPORTS = ("http2", "aio")
#: Runs the engine in its event loop, which only makes sense for one call at a time.
BY_HAND = "by hand"
IN_FLIGHT = 32
WARM_UP_S = 0.5
#: Of the engine alone, in each turn.
RUNS = 500
#: About what a request takes, one at a time.
PAUSE_S = 0.001
SERVER_CORE, CLIENT_CORE = 0, 1
#: More than any server answers in a second, so that no history comes twice.
MOST_PER_S = 5_000
#: Share of calls that a server may leave unanswered, after which it has not been measured.
MOST_FAILED = 0.01
#: How the names of gRPC's own threads begin.
GRPC_THREADS = ("event_engine", "grpc", "lifeguard", "resolver", "default-exec")
PARTS = ("engine", "loop", "poller", "grpc")

#: What starts a server.
Side = Callable[[], AbstractContextManager[StartedServer]]


def split(
    before: Mapping[int, ThreadTime], after: Mapping[int, ThreadTime], pid: int, *, engine: bool
) -> dict[str, float]:
    """Seconds of processor time of a server by what its threads do.

    The first is the event loop's. gRPC names its own; of the others the busiest is the engine's, where there is one,
    and what is left polls gRPC's queue of events.
    """
    spent = {each: now.cpu_s - before[each].cpu_s if each in before else now.cpu_s for each, now in after.items()}
    loop = spent.pop(pid)
    own = [each for each in spent if after[each].name.startswith(GRPC_THREADS)]
    grpcs = sum(spent.pop(each) for each in own)
    engines = max(spent.values(), default=0.0) if engine else 0.0
    return {"engine": engines, "loop": loop, "poller": sum(spent.values()) - engines, "grpc": grpcs}


def checked(report: Report, name: str) -> Report:
    """It, unless more than MOST_FAILED of its calls were not answered: then raises FathomError."""
    counts = report.counts()
    if counts.get("OK", 0) < (1 - MOST_FAILED) * len(report.due_s):
        raise FathomError(f"{name}: too many calls were not answered: {counts}")
    return report


def figures(
    name: str, server: StartedServer, messages: Sequence[bytes], in_flight: int, seconds: float
) -> dict[str, float]:
    """A closed loop on one connection, after a warm-up."""
    warm_up = len(messages) // 10
    checked(closed(server.address, messages[:warm_up], in_flight, 1, min(WARM_UP_S, seconds)), name)
    before = threads_of(server.pid)
    report = checked(closed(server.address, messages[warm_up:], in_flight, 1, seconds), name)
    spent = split(before, threads_of(server.pid), server.pid, engine=name in TRANSPORTS)
    count = len(report.due_s)
    return {
        "requests_per_s": report.per_s(),
        "p50_ms": report.quantile_ms("OK", 0.5) or 0.0,
        "p99_ms": report.quantile_ms("OK", 0.99) or 0.0,
        "failed": int(np.count_nonzero(report.statuses)),
        "cpu_us": sum(spent.values()) / count * 1e6,
        **{f"{part}_us": spent[part] / count * 1e6 for part in PARTS},
        "client_cpu_us": report.cpu_s / count * 1e6,
    }


def engine_ms(engine: Recommender, messages: Sequence[bytes], pause_s: float = 0.0) -> float:
    """Median time of one request in the engine and the search, with nothing around them, on the server's core."""
    took = []
    with on_core(SERVER_CORE):
        for message in messages[:RUNS]:
            request = pb.RecommendRequest.FromString(message)
            item = engine.item_of(asked(request))
            if pause_s:
                sleep(pause_s)
            begin = perf_counter()
            engine.run_items(request.depth, [item])
            took.append(perf_counter() - begin)
    return median(took) * 1e3


def sides_of(bundle: Path, answer: bytes) -> dict[str, Side]:
    """The servers that take turns."""
    sides: dict[str, Side] = {name: partial(started, bundle, "--transport", name) for name in TRANSPORTS}
    return sides | {
        BY_HAND: partial(started_module, by_hand.__name__, str(bundle)),
        "echo": partial(started_module, echo_server.__name__, answer.hex()),
    }


def an_answer(bundle: Path, message: bytes) -> bytes:
    """What the server answers to a request."""
    with started(bundle) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        found: bytes = call(message, timeout=30)
    return found


def compare(bundle: Path, seconds: float, turns: int) -> dict[str, Any]:
    """All sides ``turns`` times, each time in another order."""
    ids, count = catalogue_ids(bundle), int(MOST_PER_S * (seconds + WARM_UP_S))
    sides = sides_of(bundle, an_answer(bundle, made_up(ids, DEPTHS[0], 1, "an answer")[0]))
    found: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    alone_ms, rested_ms = [], []
    with Bundle.open(bundle) as opened, on_core(CLIENT_CORE):
        engine = Recommender(opened)
        for turn in range(turns):
            messages = {depth: made_up(ids, depth, count, f"{depth} {turn}") for depth in DEPTHS}
            alone = made_up(ids, DEPTHS[0], count, f"alone {turn}")
            alone_ms.append(engine_ms(engine, alone))
            rested_ms.append(engine_ms(engine, alone, PAUSE_S))
            names = list(sides)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                with on_core(SERVER_CORE), sides[name]() as server, on_core(CLIENT_CORE):
                    for depth in () if name == BY_HAND else DEPTHS:
                        row = figures(name, server, messages[depth], IN_FLIGHT, seconds)
                        found[f"depth_{depth}"][name].append(row)
                    found["alone"][name].append(figures(name, server, alone, 1, seconds))
    return summary(found, alone_ms, rested_ms)


def summary(
    found: Mapping[str, Mapping[str, list[dict[str, float]]]], alone_ms: Sequence[float], rested_ms: Sequence[float]
) -> dict[str, Any]:
    """Medians over the turns, and of ratios to the echo of the same turn their range too."""
    result: dict[str, Any] = {
        "engine_ms": round(median(alone_ms), 3),
        "engine_range_ms": _range(alone_ms),
        "engine_rested_ms": round(median(rested_ms), 3),
        "engine_rested_range_ms": _range(rested_ms),
    }
    for load, sides in found.items():
        result[load] = {}
        for name, rows in sides.items():
            rates = [row["requests_per_s"] for row in rows]
            ratios = [rate / echo["requests_per_s"] for rate, echo in zip(rates, sides["echo"], strict=True)]
            result[load][name] = {
                **_medians(rows),
                "requests_range": _range(rates),
                "p50_range_ms": _range([row["p50_ms"] for row in rows]),
                "cpu_range_us": _range([row["cpu_us"] for row in rows]),
                "failed": sum(row["failed"] for row in rows),
                "of_echo": round(median(ratios), 3),
                "of_echo_range": _range(ratios),
            }
    return result | {"turns": found}


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: round(median(row[key] for row in rows), 3) for key in rows[0]}


def _range(values: Sequence[float]) -> list[float]:
    return [round(min(values), 3), round(max(values), 3)]


def measure(options: Namespace) -> Iterator[Run]:
    """All sides in turns."""
    config = {
        "bundle": read_manifest(options.bundle).name,
        "history": HISTORY,
        "k": K,
        "in_flight": IN_FLIGHT,
        "seconds": options.seconds,
        "turns": options.turns,
    }
    yield Run(config, compare(options.bundle, options.seconds, options.turns), 0)


COLUMNS = (
    "server={side} | requests/s={requests_per_s:,.0f} | of the echo={of_echo:.2f}"
    " ({of_echo_range[0]:.2f} to {of_echo_range[1]:.2f}) | p50 ms={p50_ms:.2f} | p99 ms={p99_ms:.2f}"
    " | CPU µs={cpu_us:.0f} | engine={engine_us:.0f} | event loop={loop_us:.0f} | poller={poller_us:.0f}"
    " | gRPC's threads={grpc_us:.0f} | client's CPU µs={client_cpu_us:.0f}"
    " | not answered={failed:,.0f}"
)


def render(run: StoredRun) -> str:
    """A table for each load."""
    result, config = run["result"], run["config"]
    parts = []
    for load in (f"depth_{depth}" for depth in DEPTHS):
        parts += [
            f"{load.replace('_', ' ').capitalize()}, {config['in_flight']} in flight:",
            table_of(_rows(result[load]), COLUMNS),
        ]
    above = {
        name: f"{row['p50_ms'] - result['engine_rested_ms']:.2f} ms"
        for name, row in result["alone"].items()
        if name != "echo"
    }
    return paragraphs(
        "## The server over each transport, against a bare grpc.aio echo of the same messages",
        f"Histories of {config['history']} items, each of them new; server on one core, client on another; medians of"
        f" {config['turns']} turns, in brackets the range. CPU is that of the server's process per request.",
        *parts,
        f"Depth {DEPTHS[0]}, one call at a time. The engine and its search alone take {result['engine_ms']:.2f} ms one"
        f" run after the other, and {result['engine_rested_ms']:.2f} ms after a pause of {PAUSE_S * 1e3:g} ms, as a"
        f" server has it between two calls. Above the latter the median lies"
        f" {', '.join(f'{ms} ({name})' for name, ms in above.items())}; by hand is a bare grpc.aio server that runs the"
        " same engine in its event loop:",
        table_of(_rows(result["alone"]), COLUMNS),
    )


def _rows(sides: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"side": name, **row} for name, row in sides.items()]


BENCHMARK = Benchmark(
    __doc__, "9 min, two cores", {"bundle": Path, "--seconds": 5.0, "--turns": 5}, measure, of_runs(render, "front")
)
