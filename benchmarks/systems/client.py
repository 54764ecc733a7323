"""What a request costs the caller: processor time of the client's process, by the way that it is sent.

Bare stubs of gRPC, blocking and for asyncio, the client of this package, messages that were encoded before, a stream,
and many queries in few messages, all with the same queries to the same server, in a new order in each round; the client
has a core of its own. Depth 4, histories of 50 items that the server has seen before, k 10, titles. Answers are read,
but for those to encoded messages and to the load generator. Writes results/client.json.
"""

import asyncio
import random
import threading
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import grpc
import uvloop

from fathom.benchmarks import http2_load
from fathom.benchmarks.load import closed_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, catalogue_ids, on_core, started
from fathom.client import AsyncClient, Client, Query
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

SEED = 1
DEPTH, HISTORY, HISTORIES = 4, 50, 500
CONCURRENT = 32
#: What the server reads of a stream before it has answered.
STREAMED = 64
CONNECTIONS = 4
TIMEOUT_S = 30.0


class Spent(NamedTuple):
    """Processor time of this process per request, in microseconds, and requests per second."""

    cpu_us: float
    per_s: float


@dataclass(frozen=True)
class Asked:
    """A server's address, how many requests it is sent, how many at a time, and which, in turn."""

    address: str
    count: int
    in_flight: int
    queries: Sequence[Query]
    messages: Sequence[pb.RecommendRequest]
    encoded: Sequence[bytes]

    @property
    def all_queries(self) -> Iterator[Query]:
        """As many as are asked."""
        return (self.queries[number % len(self.queries)] for number in range(self.count))


Way = Callable[[Asked], Spent]


def spent(count: int, work: Callable[[], object]) -> Spent:
    """What ``count`` requests cost."""
    cpu_s, begin = process_time(), perf_counter()
    work()
    return Spent((process_time() - cpu_s) / count * 1e6, count / (perf_counter() - begin))


async def spent_awaiting(count: int, work: Awaitable[object]) -> Spent:
    """The same of what is awaited."""
    cpu_s, begin = process_time(), perf_counter()
    await work
    return Spent((process_time() - cpu_s) / count * 1e6, count / (perf_counter() - begin))


def _stub(channel: Any) -> Any:
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


def _encoded(channel: Any) -> Any:
    return channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)


def _recommend(client: Any, asked: Asked, number: int) -> Any:
    return client.recommend(asked.queries[number].items, depth=DEPTH, timeout_s=TIMEOUT_S)


def by_threads(asked: Asked, call: Callable[[int], object]) -> Spent:
    """A thread per request in flight; none where it is one."""
    numbers = iter(range(asked.count))

    def work() -> None:
        for number in numbers:
            call(number % HISTORIES)

    call(0)
    if asked.in_flight == 1:
        return spent(asked.count, work)
    with ThreadPoolExecutor(asked.in_flight) as pool:

        def everyone() -> None:
            for done in [pool.submit(work) for _ in range(asked.in_flight)]:
                done.result()

        return spent(asked.count, everyone)


async def by_tasks(asked: Asked, call: Callable[[int], Awaitable[object]]) -> Spent:
    """A task per request in flight."""
    await call(0)
    loop = closed_loop(lambda number: call(number % HISTORIES), asked.in_flight, asked.count)
    return await spent_awaiting(asked.count, loop)


def blocking_stub(asked: Asked) -> Spent:
    """gRPC's own."""
    with grpc.insecure_channel(asked.address) as channel:
        stub = _stub(channel)
        return by_threads(asked, lambda number: stub.Recommend(asked.messages[number], timeout=TIMEOUT_S))


def blocking_encoded(asked: Asked) -> Spent:
    """gRPC's own, with bytes."""
    with grpc.insecure_channel(asked.address) as channel:
        call = _encoded(channel)
        return by_threads(asked, lambda number: call(asked.encoded[number], timeout=TIMEOUT_S))


def futures(asked: Asked) -> Spent:
    """gRPC's own, from one thread that does not wait for single answers."""
    room = threading.Semaphore(asked.in_flight)

    def send(stub: Any) -> None:
        sent = []
        for number in range(asked.count):
            room.acquire()
            sent.append(stub.Recommend.future(asked.messages[number % HISTORIES], timeout=TIMEOUT_S))
            sent[-1].add_done_callback(lambda _: room.release())
        for each in sent:
            each.result()

    with grpc.insecure_channel(asked.address) as channel:
        stub = _stub(channel)
        stub.Recommend(asked.messages[0], timeout=TIMEOUT_S)
        return spent(asked.count, lambda: send(stub))


def client(asked: Asked, channels: int = 1) -> Spent:
    """Client, a call per query."""
    with Client(asked.address, channels=channels) as one:
        return by_threads(asked, lambda number: _recommend(one, asked, number))


def client_all(asked: Asked) -> Spent:
    """Client, few messages."""
    with Client(asked.address) as one:
        one.recommend_many(asked.queries[:1])
        return spent(asked.count, lambda: list(one.recommend_all(asked.all_queries, timeout_s=TIMEOUT_S)))


async def asyncio_stub(asked: Asked) -> Spent:
    """gRPC's own for asyncio."""
    async with grpc.aio.insecure_channel(asked.address) as channel:
        stub = _stub(channel)
        return await by_tasks(asked, lambda number: stub.Recommend(asked.messages[number], timeout=TIMEOUT_S))


async def asyncio_encoded(asked: Asked) -> Spent:
    """gRPC's own for asyncio, with bytes."""
    async with grpc.aio.insecure_channel(asked.address) as channel:
        call = _encoded(channel)
        return await by_tasks(asked, lambda number: call(asked.encoded[number], timeout=TIMEOUT_S))


async def asyncio_stream(asked: Asked) -> Spent:
    """gRPC's own for asyncio, one stream."""
    async with grpc.aio.insecure_channel(asked.address) as channel:
        stub = _stub(channel)
        await stub.Recommend(asked.messages[0], timeout=TIMEOUT_S)
        stream, room = stub.RecommendStream(), asyncio.Semaphore(asked.in_flight)

        async def write() -> None:
            for number in range(asked.count):
                await room.acquire()
                await stream.write(asked.messages[number % HISTORIES])
            await stream.done_writing()

        async def read() -> None:
            writing = asyncio.create_task(write())
            for _ in range(asked.count):
                await stream.read()
                room.release()
            await writing

        return await spent_awaiting(asked.count, read())


async def async_client(asked: Asked, channels: int = 1) -> Spent:
    """AsyncClient, a call per query."""
    async with AsyncClient(asked.address, channels=channels) as one:
        return await by_tasks(asked, lambda number: _recommend(one, asked, number))


async def async_client_all(asked: Asked) -> Spent:
    """AsyncClient, few messages."""
    async with AsyncClient(asked.address) as one:
        await one.recommend_many(asked.queries[:1])

        async def read() -> None:
            async for _ in one.recommend_all(asked.all_queries, timeout_s=TIMEOUT_S):
                pass

        return await spent_awaiting(asked.count, read())


def generator(asked: Asked) -> Spent:
    """The benchmarks' own load generator."""
    report = http2_load.closed(asked.address, asked.encoded, asked.in_flight, 1, max(0.5, asked.count / 1_000))
    return Spent(report.cpu_s / len(report.due_s) * 1e6, report.per_s())


def awaiting(way: Callable[[Asked], Any]) -> Way:
    """One for asyncio, run."""
    return lambda asked: asyncio.run(way(asked))


#: Name -> requests in flight, and how they are sent.
WAYS: Mapping[str, tuple[int, Way]] = {
    "stub": (1, blocking_stub),
    "Client": (1, client),
    "asyncio stub": (1, awaiting(asyncio_stub)),
    "AsyncClient": (1, awaiting(async_client)),
    "stub, threads": (CONCURRENT, blocking_stub),
    "stub, encoded before, threads": (CONCURRENT, blocking_encoded),
    "stub, futures": (CONCURRENT, futures),
    "Client, threads": (CONCURRENT, client),
    f"Client, threads, {CONNECTIONS} connections": (CONCURRENT, partial(client, channels=CONNECTIONS)),
    "asyncio stub, tasks": (CONCURRENT, awaiting(asyncio_stub)),
    "asyncio stub, encoded before, tasks": (CONCURRENT, awaiting(asyncio_encoded)),
    "asyncio stub, one stream": (STREAMED, awaiting(asyncio_stream)),
    "AsyncClient, tasks": (CONCURRENT, awaiting(async_client)),
    f"AsyncClient, tasks, {CONNECTIONS} connections": (
        CONCURRENT,
        awaiting(partial(async_client, channels=CONNECTIONS)),
    ),
    "AsyncClient, tasks, uvloop": (CONCURRENT, lambda asked: uvloop.run(async_client(asked))),
    "Client.recommend_all": (STREAMED, client_all),
    "AsyncClient.recommend_all": (STREAMED, awaiting(async_client_all)),
    "load generator of the benchmarks": (CONCURRENT, generator),
}


def compare(bundle: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """Every way, in turn; a row of medians for each."""
    rng, ids = random.Random(SEED), catalogue_ids(bundle)
    queries = [Query(rng.choices(ids, k=HISTORY), depth=DEPTH) for _ in range(HISTORIES)]
    messages = [query.message() for query in queries]
    encoded = [message.SerializeToString() for message in messages]
    found: dict[str, list[Spent]] = {name: [] for name in WAYS}
    with on_core(0), started(bundle) as server, on_core(1):
        for turn in range(rounds + 1):
            for name in rng.sample(list(WAYS), len(WAYS)):
                in_flight, way = WAYS[name]
                taken = way(Asked(server.address, count, in_flight, queries, messages, encoded))
                if turn:  # The first warms up.
                    found[name].append(taken)
    return [
        {
            "way": name,
            "in_flight": WAYS[name][0],
            "cpu_us": round(median(each.cpu_us for each in taken), 1),
            "cpu_us_range": [round(edge(each.cpu_us for each in taken), 1) for edge in (min, max)],
            "requests_per_s": round(median(each.per_s for each in taken), 1),
        }
        for name, taken in found.items()
    ]


def measure(options: Namespace) -> Iterator[Run]:
    """Every way, in turn."""
    config = {
        "bundle": options.bundle.name,
        "depth": DEPTH,
        "history": HISTORY,
        "requests": options.requests,
        "rounds": options.rounds,
    }
    yield Run(config, {"rows": compare(options.bundle, options.requests, options.rounds)}, SEED)


def render(run: StoredRun) -> str:
    """A row per way."""
    config = run["config"]
    return paragraphs(
        "## What a request costs its caller",
        table_of(
            run["result"]["rows"],
            "={way} | in flight={in_flight} | CPU µs per request={cpu_us:,.0f}"
            " | range={cpu_us_range[0]:,.0f} to {cpu_us_range[1]:,.0f} | requests/s={requests_per_s:,.0f}",
        ),
        f"Processor time of the client's process, medians of {config['rounds']} rounds of {config['requests']:,}"
        " requests. Requests/s are the server's as much as the client's.",
    )


BENCHMARK = Benchmark(
    __doc__, "5 min", {"bundle": Path, "--requests": 2_000, "--rounds": 5}, measure, of_runs(render, "client")
)
