"""The server against a bare grpc.aio echo of the same messages: what everything behind the wire costs.

Both servers run in processes of their own and take turns; the client is this process, in a closed loop. The echo
decodes each request and encodes one of the server's own answers. Depth 4, history 50, k 10. Writes
results/grpc_echo.json: requests per second at concurrency 32 as a ratio, latency at concurrency 1.
"""

import asyncio
import random
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, catalogue_ids, cpu_s, started, started_module
from fathom.benchmarks.systems import echo_server
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

SEED = 1
DEPTH, HISTORY, K = 4, 50, 10
HISTORIES = 500
CONCURRENT = 32
WARM_UP_S = 0.5
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Figures:
    """One turn of one server; CPU is that of the whole process, per request, and of its two busiest parts.

    ``loop_cpu_us``: of the main thread, which is the event loop. ``second_cpu_us``: of the busiest other thread, which
    in Fathom's server is the engine.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    client_cpu_us: float
    loop_cpu_us: float
    second_cpu_us: float


@dataclass(frozen=True)
class Turn:
    """Both servers, one after the other, at one concurrency."""

    server: Figures
    echo: Figures

    @property
    def ratio(self) -> float:
        """Requests per second of the server over those of the echo."""
        return self.server.requests_per_s / self.echo.requests_per_s


@contextmanager
def running_echo(answer: bytes) -> Iterator[tuple[str, int]]:
    """Address and process id of an echo server."""
    with started_module(echo_server.__name__, answer.hex()) as echo:
        yield echo.address, echo.pid


async def load(address: str, pid: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> Figures:
    """A closed loop of ``concurrency`` callers for ``seconds``, after a warm-up; any error ends the benchmark."""
    latencies: list[float] = []
    process, me = psutil.Process(pid), psutil.Process()

    async def caller(call: Any, number: int, until: float) -> None:
        while (begin := time.perf_counter()) < until:
            await call(requests[number % len(requests)], timeout=TIMEOUT_S)
            latencies.append(time.perf_counter() - begin)
            number += concurrency

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        for duration in (min(WARM_UP_S, seconds), seconds):
            latencies.clear()
            before = cpu_s(process), cpu_s(me)
            threads_before = _threads_cpu_s(process)
            begin = time.perf_counter()
            await asyncio.gather(*(caller(call, number, begin + duration) for number in range(concurrency)))
            took = time.perf_counter() - begin
            after = cpu_s(process), cpu_s(me)
            threads = {each: now - threads_before.get(each, 0) for each, now in _threads_cpu_s(process).items()}
    count = len(latencies)
    ordered = sorted(latencies)
    return Figures(
        requests_per_s=count / took,
        p50_ms=ordered[-(-count // 2) - 1] * 1e3,
        p99_ms=ordered[-(-count * 99 // 100) - 1] * 1e3,
        server_cpu_us=(after[0] - before[0]) / count * 1e6,
        client_cpu_us=(after[1] - before[1]) / count * 1e6,
        loop_cpu_us=threads.pop(pid) / count * 1e6,
        second_cpu_us=max(threads.values()) / count * 1e6,
    )


def _threads_cpu_s(process: psutil.Process) -> dict[int, float]:
    return {each.id: each.user_time + each.system_time for each in process.threads()}


def make_requests(bundle: Path) -> list[bytes]:
    """Encoded requests over random items of the bundle's catalogue."""
    ids = catalogue_ids(bundle)
    rng = random.Random(SEED)
    return [
        pb.RecommendRequest(item_ids=rng.choices(ids, k=HISTORY), k=K, depth=DEPTH).SerializeToString()
        for _ in range(HISTORIES)
    ]


def stages(address: str, requests: Sequence[bytes]) -> tuple[bytes, dict[str, float]]:
    """One of the server's answers, and the medians of its own timings when it is asked one by one."""
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        answers = [stub.Recommend(pb.RecommendRequest.FromString(each), timeout=TIMEOUT_S) for each in requests]
    names = ("select_us", "queue_us", "engine_us", "retrieval_us", "total_us")
    answer: bytes = answers[0].SerializeToString()
    return answer, {name: float(median(getattr(each.timings, name) for each in answers)) for name in names}


def compare(bundle: Path, seconds: float, repetitions: int) -> dict[str, Any]:
    """Take turns ``repetitions`` times at concurrency 32 and 1, each time in the other order."""
    requests = make_requests(bundle)
    turns: dict[int, list[Turn]] = {CONCURRENT: [], 1: []}
    # The same histories come again and again; that they are remembered is not what this is about.
    with started(bundle, "--reuse-mb", "0") as server:
        answer, timings = stages(server.address, requests)
        with running_echo(answer) as (echo_address, echo_pid):
            targets = {"server": (server.address, server.pid), "echo": (echo_address, echo_pid)}
            for repetition in range(repetitions):
                order = list(targets) if repetition % 2 == 0 else list(reversed(targets))
                for concurrency, taken in turns.items():
                    figures = {
                        name: asyncio.run(load(*targets[name], requests, concurrency, seconds)) for name in order
                    }
                    taken.append(Turn(**figures))
    return {
        "ratio_requests_per_s": round(median(turn.ratio for turn in turns[CONCURRENT]), 3),
        "ratio_range": [round(edge(turn.ratio for turn in turns[CONCURRENT]), 3) for edge in (min, max)],
        **{f"concurrency_{concurrency}": _medians(taken) for concurrency, taken in turns.items()},
        "server_timings_alone": timings,
        "request_bytes": len(requests[0]),
        "response_bytes": len(answer),
        "turns": {str(concurrency): [asdict(turn) for turn in taken] for concurrency, taken in turns.items()},
    }


def _medians(turns: Sequence[Turn]) -> dict[str, dict[str, float]]:
    names = list(Figures.__dataclass_fields__)
    return {
        side: {name: round(median(getattr(getattr(turn, side), name) for turn in turns), 3) for name in names}
        for side in ("server", "echo")
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Both servers in turns."""
    config = {
        "bundle": options.bundle.name,
        "depth": DEPTH,
        "history": HISTORY,
        "k": K,
        "concurrency": [CONCURRENT, 1],
        "seconds": options.seconds,
        "repetitions": options.repetitions,
    }
    yield Run(config, compare(options.bundle, options.seconds, options.repetitions), SEED)


def render(run: StoredRun) -> str:
    """A row per server and concurrency."""
    result = run["result"]
    rows = [
        {"side": f"{side}, concurrency {concurrency}", **figures}
        for concurrency in (1, CONCURRENT)
        for side, figures in result[f"concurrency_{concurrency}"].items()
    ]
    low, high = result["ratio_range"]
    return paragraphs(
        "## The server, depth 4, against a bare grpc.aio echo of the same messages",
        table_of(
            rows,
            "={side} | p50 ms={p50_ms:,.2f} | p99 ms={p99_ms:,.2f} | requests/s={requests_per_s:,.2f}"
            " | CPU µs per request={server_cpu_us:,.0f} | event loop={loop_cpu_us:,.0f}"
            " | next thread={second_cpu_us:,.0f}",
        ),
        f"Requests/s at concurrency 32, server over echo: {result['ratio_requests_per_s']:.3f} ({low:.3f} to"
        f" {high:.3f} over the repetitions). The next thread is the busiest besides the event loop's: of the server the"
        " engine's.",
    )


BENCHMARK = Benchmark(
    __doc__, "3 min", {"bundle": Path, "--seconds": 5.0, "--repetitions": 5}, measure, of_runs(render, "grpc_echo")
)
