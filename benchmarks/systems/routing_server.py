"""What routing saves, and what the deadline saves, measured through real servers.

Needs a certified bundle. Requests are the test histories of the data set, so that every answer has a right one.

Compute: CPU seconds of the server's process per request, of a server that follows the certificate and one that answers
everything at the deepest depth, in alternating rounds over the same requests. Load: Poisson arrivals at twice the rate
that the deepest depth can answer, each of which wants its answer within 50 ms.
"""

import asyncio
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np

from fathom.benchmarks.load import open_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run, StoredRun
from fathom.benchmarks.server import StartedServer, started
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1.recommender_pb2_grpc import RecommenderStub
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset
from fathom.training.splits import split

SEED = 0
ROUNDS = 12
REQUESTS = 400
CONCURRENCY = (1, 8)
DEADLINE_S = 0.05
OVERLOAD = 2.0
LOAD_S = 20.0


@dataclass(frozen=True)
class ServedCase:
    """A request and the id that answers it."""

    items: list[str]
    target: str


@dataclass(frozen=True)
class Answered:
    """One request under load: seconds from the moment it was due, and what came; None for no answer."""

    seconds: float
    depth: int | None
    gain: float


def read_cases(bundle: Bundle, dataset: Dataset) -> list[ServedCase]:
    """The test cases of the bundle's split, in random order."""
    if bundle.manifest.source.split is None:
        raise ConfigError(f"{bundle.path}: it does not say how its data were split; export it again")
    cases = split(dataset, bundle.manifest.source.split).test
    ids, longest = dataset.item_ids, bundle.manifest.model.max_history
    found = [
        ServedCase([ids[i] for i in cases.histories[row][-longest:].tolist()], ids[int(cases.targets[row])])
        for row in range(len(cases))
    ]
    order = np.random.default_rng(SEED).permutation(len(found))
    return [found[i] for i in order]


async def ask_all(
    stub: Any, cases: Sequence[ServedCase], concurrency: int, depth: int | None = None
) -> list[pb.RecommendResponse]:
    """Every case, so many at a time."""
    slots = asyncio.Semaphore(concurrency)

    async def one(case: ServedCase) -> pb.RecommendResponse:
        async with slots:
            answer: pb.RecommendResponse = await stub.Recommend(pb.RecommendRequest(item_ids=case.items, depth=depth))
            return answer

    return await asyncio.gather(*(one(case) for case in cases))


async def offer(
    stub: Any, cases: Sequence[ServedCase], rate: float, seconds: float, *, deadline: bool
) -> list[Answered]:
    """Poisson arrivals; with ``deadline`` the server is told it, else only the watch of the client knows."""
    found: list[Answered] = []

    async def one(case: ServedCase, due_s: float) -> None:
        left = DEADLINE_S - (time.perf_counter() - due_s)
        depth, gain = None, 0.0
        if left > 0 or not deadline:
            with suppress(grpc.aio.AioRpcError):
                answer = await stub.Recommend(
                    pb.RecommendRequest(item_ids=case.items), timeout=left if deadline else 10 * seconds
                )
                depth, gain = answer.depth, _gain(answer, case)
        found.append(Answered(time.perf_counter() - due_s, depth, gain))

    await open_loop(
        lambda number, due_s: one(cases[number % len(cases)], due_s), rate, count=int(rate * seconds), seed=SEED
    )
    return found


def gain(items: Sequence[str], case: ServedCase) -> float:
    """NDCG@10 of the ten items of an answer, the best first."""
    return float(1 / np.log2(items.index(case.target) + 2)) if case.target in items else 0.0


def _gain(answer: pb.RecommendResponse, case: ServedCase) -> float:
    return gain([item.id for item in answer.items], case)


def summarise_load(found: Sequence[Answered]) -> dict[str, Any]:
    """Shares of all requests that were due, and the quality of those that came in time."""
    timely = [each for each in found if each.depth is not None and each.seconds <= DEADLINE_S]
    depths = Counter(each.depth for each in timely)
    return {
        "requests": len(found),
        "in_time": round(len(timely) / len(found), 4),
        "answered": round(sum(each.depth is not None for each in found) / len(found), 4),
        "ndcg_in_time": round(float(np.mean([each.gain for each in timely])), 4) if timely else None,
        "ndcg_of_all": round(sum(each.gain for each in timely) / len(found), 4),
        "depths": {str(depth): round(count / len(timely), 4) for depth, count in sorted(depths.items())},
        "median_ms": round(median(each.seconds for each in found) * 1e3, 2),
    }


async def measure_compute(
    servers: Mapping[str, StartedServer],
    cases: Sequence[ServedCase],
    rounds: int,
    concurrencies: Sequence[int] = CONCURRENCY,
) -> list[dict[str, Any]]:
    """CPU milliseconds per request of each server, rounds alternating, and what it saves of "deepest"'s."""
    rows = []
    async with open_stubs(servers) as stubs:
        for concurrency in concurrencies:
            spent: dict[str, list[float]] = {name: [] for name in servers}
            wall: dict[str, list[float]] = {name: [] for name in servers}
            gains: dict[str, list[float]] = {name: [] for name in servers}
            for turn in range(rounds):
                block = [cases[i % len(cases)] for i in range(turn * REQUESTS, (turn + 1) * REQUESTS)]
                for name in sorted(servers, reverse=bool(turn % 2)):
                    before, start_s = servers[name].cpu_s(), time.perf_counter()
                    answers = await ask_all(stubs[name], block, concurrency)
                    wall[name].append((time.perf_counter() - start_s) / len(block) * 1e3)
                    spent[name].append((servers[name].cpu_s() - before) / len(block) * 1e3)
                    gains[name] += [_gain(answer, case) for answer, case in zip(answers, block, strict=True)]
            rows.append(
                {
                    "concurrency": concurrency,
                    "cpu_ms": {name: round(median(values), 3) for name, values in spent.items()},
                    "wall_ms": {name: round(median(values), 3) for name, values in wall.items()},
                    "ndcg": {name: round(float(np.mean(values)), 4) for name, values in gains.items()},
                    "saved": {name: _saved(spent[name], spent["deepest"]) for name in servers if name != "deepest"},
                }
            )
    return rows


def _saved(spent: Sequence[float], deepest: Sequence[float]) -> dict[str, float]:
    """The median over rounds (n,), and its 95 % interval."""
    shares = 1 - np.array(spent) / np.array(deepest)
    drawn = np.random.default_rng(SEED).choice(shares, (2000, len(shares)))
    figures = (np.median(shares), *np.quantile(np.median(drawn, axis=1), [0.025, 0.975]))
    return dict(zip(("value", "low", "high"), (round(float(figure), 4) for figure in figures), strict=True))


@asynccontextmanager
async def open_stubs(servers: Mapping[str, StartedServer]) -> AsyncIterator[dict[str, Any]]:
    """A stub for each server, each with a channel of its own."""
    async with AsyncExitStack() as stack:
        channels = {name: grpc.aio.insecure_channel(server.address) for name, server in servers.items()}
        for channel in channels.values():
            await stack.enter_async_context(channel)
        yield {name: RecommenderStub(channel) for name, channel in channels.items()}  # type: ignore[no-untyped-call]


async def measure_load(
    servers: dict[str, StartedServer], cases: Sequence[ServedCase], deepest: int, seconds: float
) -> dict[str, Any]:
    """Capacity at the deepest depth, then every arm at twice that rate."""
    async with open_stubs(servers) as stubs:
        start_s = time.perf_counter()
        await ask_all(stubs["deepest"], cases[: 4 * REQUESTS], 64, deepest)
        capacity = 4 * REQUESTS / (time.perf_counter() - start_s)
        arms = {}
        for name, server, deadline in (
            ("deepest, deadline unknown to the server", "deepest", False),
            ("deepest, deadline", "deepest", True),
            ("certified, deadline", "certified", True),
        ):
            arms[name] = summarise_load(
                await offer(stubs[server], cases, OVERLOAD * capacity, seconds, deadline=deadline)
            )
    return {"capacity_per_s": round(capacity, 1), "offered_per_s": round(OVERLOAD * capacity, 1), "arms": arms}


def measure(options: Namespace) -> Iterator[Run]:
    """Compute, then load."""
    bundle = Bundle.open(options.bundle)
    if bundle.certificate is None or "quality" not in bundle.certificate.promises:
        raise ConfigError(f"{bundle.path}: not certified; run `fathom certify` first")
    cases = read_cases(bundle, Dataset.load(options.data))
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                started(options.bundle, "--policy", name, "--feedback-share", "0", "--reuse-mb", "0")
            )
            for name in ("certified", "deepest")
        }
        compute = asyncio.run(measure_compute(servers, cases, options.rounds))
        load = asyncio.run(measure_load(servers, cases, bundle.depths[-1], options.seconds))
    claim = bundle.certificate.claim(bundle.depths)
    config = {
        "bundle": bundle.manifest.name,
        "routing": claim.routing.words if claim and claim.routing else None,
        "eps": bundle.certificate.promises["quality"].eps,
        "rounds": options.rounds,
        "requests_per_round": REQUESTS,
        "deadline_ms": DEADLINE_S * 1e3,
        "load_s": options.seconds,
    }
    name = f"routing_server/{bundle.manifest.name}-eps-{config['eps']:g}"
    yield Run(config, {"compute": compute, "load": load}, SEED, name)


def section(folder: Path = RESULTS) -> str:
    """All stored runs, the largest eps first."""
    paths = sorted((folder / "routing_server").glob("*.json"), reverse=True)
    about = (
        "CPU time of the server's process per request, gRPC included, against a server that answers everything at the"
        " deepest depth; alternating rounds over the same requests."
    )
    parts = [part for path in paths for part in _parts(load_run(path))]
    return paragraphs("### Through the server", about, *parts) if parts else ""


def _parts(run: StoredRun) -> list[str]:
    config, load = run["config"], run["result"]["load"]
    return [
        f"{config['bundle']}, certified at eps {config['eps']:.0%}: {config['routing']}.",
        table_of(
            run["result"]["compute"],
            "concurrency={concurrency} | CPU ms, deepest={cpu_ms[deepest]:.2f}"
            " | CPU ms, certified={cpu_ms[certified]:.2f}"
            " | saved={saved[certified][value]:.1%} [{saved[certified][low]:.1%}, {saved[certified][high]:.1%}]"
            " | NDCG@10, deepest={ndcg[deepest]:decimal} | certified={ndcg[certified]:decimal}",
        ),
        f"Poisson arrivals at {load['offered_per_s']:,.0f} requests/s, twice what the deepest depth answers"
        f" ({load['capacity_per_s']:,.0f}/s), each wanted within {config['deadline_ms']:.0f} ms:",
        table_of(
            [_arm_row(name, arm) for name, arm in load["arms"].items()],
            "server={name} | in time={in_time:.1%} | answered={answered:.1%}"
            " | NDCG@10 of those in time={ndcg_in_time:decimal} | of all requests={ndcg_of_all:decimal}"
            " | depths={depths}",
        ),
    ]


def _arm_row(name: str, arm: StoredRun) -> dict[str, Any]:
    depths = [f"{depth}: {share:.0%}" for depth, share in arm["depths"].items()]
    ndcg = {key: arm[key] or 0.0 for key in ("ndcg_in_time", "ndcg_of_all")}
    return {**arm, "name": name, "depths": depths, **ndcg}


BENCHMARK = Benchmark(
    __doc__,
    "10 min, a certified bundle and its data",
    {"bundle": Path, "--data": Path, "--rounds": ROUNDS, "--seconds": LOAD_S},
    measure,
    section,
    folders=("routing_server",),
)
