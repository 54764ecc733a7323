"""A server under more load than it can bear: goodput, and what becomes of the rest.

Poisson arrivals at multiples of the rate that the deepest depth can answer; each request wants its answer within 50 ms
and says so to the server, which wants the deepest depth for all. Goodput: requests/s that are answered in time; quality
goodput: the sum of NDCG@10 per second that those answers give on average, by their depths. With the backlog that a
server has by default and with a small one, each under a profile that allows depth 0 and under the same without it. The
client runs beside the server and takes its
part of the processor, so it does as little as it can: requests are encoded before, answers looked at afterwards.
Writes results/overload.json, with --name NAME results/overload-NAME.json.
"""

import asyncio
import gc
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import uvloop

from fathom.benchmarks.load import closed_loop, open_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, StartedServer, started
from fathom.benchmarks.systems.routing_server import read_cases
from fathom.edge_profiles import profile
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SEED = 0
DEADLINE_S = 0.05
FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
LOAD_S = 15.0
#: Calls that gRPC holds unread; None: as by default.
BACKLOGS = (None, 8)
#: Of the closed loop that measures capacity.
CONCURRENCY, ANSWERS = 64, 1_600
ARMS = ("depth_0_backlog_default", "depth_0_backlog_8", "backlog_default", "backlog_8")
#: Its depths are those of a server that says nothing.
PROFILE = Path(profile.__file__).with_name("cloud-cpu.yaml")
STATUSES = ("OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")


class Ended(NamedTuple):
    """One request: seconds from the moment it was due and from its call to its end, status, depth if answered."""

    due_s: float
    called_s: float
    status: str
    depth: int | None


async def offer(call: Any, requests: Sequence[bytes], rate: float, seconds: float) -> list[Ended]:
    """Poisson arrivals, however slow the answers are; what is late before it is called is not called any more."""
    calls: list[tuple[float, float, Any]] = []
    ended: dict[int, float] = {}
    everything, count = asyncio.Event(), int(rate * seconds)

    def end(number: int) -> None:
        ended[number] = time.perf_counter()
        if len(ended) == count:
            everything.set()

    def send(number: int, due_s: float) -> None:
        now = time.perf_counter()
        left_s = DEADLINE_S - (now - due_s)
        made = call(requests[number % len(requests)], timeout=left_s) if left_s > 0 else None
        calls.append((due_s, now, made))
        if made is None:
            end(number)
        else:
            made.add_done_callback(lambda _: end(number))

    await open_loop(send, rate, count=count, seed=SEED)
    await everything.wait()
    return [await _ended(*each, ended[number]) for number, each in enumerate(calls)]


async def _ended(due: float, called: float, made: Any, end_s: float) -> Ended:
    if made is None:
        return Ended(end_s - due, 0.0, "TOO_LATE", None)
    code = await made.code()
    depth = pb.RecommendResponse.FromString(await made).depth if code is grpc.StatusCode.OK else None
    return Ended(end_s - due, end_s - called, code.name, depth)


def summarise(found: list[Ended], seconds: float) -> dict[str, Any]:
    """Goodput, and times in milliseconds of the calls that were answered and of those that were refused."""
    timely = [each for each in found if each.depth is not None and each.due_s <= DEADLINE_S]
    return {
        "requests": len(found),
        "offered_per_s": round(len(found) / seconds, 1),
        "goodput_per_s": round(len(timely) / seconds, 1),
        "in_time": round(len(timely) / len(found), 4),
        "statuses": dict(Counter(each.status for each in found)),
        "answered_p99_ms": _quantile(found, "OK", 0.99),
        "refused_p50_ms": _quantile(found, "RESOURCE_EXHAUSTED", 0.5),
        "refused_p99_ms": _quantile(found, "RESOURCE_EXHAUSTED", 0.99),
        "cancelled_p99_ms": _quantile(found, "CANCELLED", 0.99),
        "depths": {str(depth): count for depth, count in sorted(Counter(_depths(timely)).items())},
    }


def _depths(found: Iterable[Ended]) -> list[int]:
    return [each.depth for each in found if each.depth is not None]


def quality_goodput(row: Mapping[str, Any], quality: Mapping[int, float], seconds: float) -> float:
    """NDCG@10 per second of the answers in time, given what each depth has on average."""
    total: float = sum(count * quality[int(depth)] for depth, count in row["depths"].items())
    return round(total / seconds, 3)


def _quantile(found: list[Ended], status: str, share: float) -> float | None:
    times = [each.called_s for each in found if each.status == status]
    return round(float(np.quantile(times, share)) * 1e3, 2) if times else None


async def capacity_of(server: StartedServer, requests: Sequence[bytes]) -> float:
    """Requests/s that a closed loop gets answered, without deadlines: at the depth that the server wants."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        return await closed_loop(lambda number: call(requests[number % len(requests)]), CONCURRENCY, ANSWERS)


async def loads(
    server: StartedServer, requests: Sequence[bytes], capacity: float, seconds: float
) -> list[dict[str, Any]]:
    """Every factor of the capacity."""
    process = psutil.Process(server.pid)
    rows = []
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        for factor in FACTORS:
            before = process.memory_info().rss
            gc.disable()
            found = await offer(call, requests, factor * capacity, seconds)
            gc.enable()
            grown = (process.memory_info().rss - before) / 1e6
            rows.append({"factor": factor, **summarise(found, seconds), "memory_grown_mb": round(grown, 2)})
        return rows


def measure(options: Namespace) -> Iterator[Run]:
    """The capacity, then every load with each backlog."""
    bundle = Bundle.open(options.bundle)
    cases = read_cases(bundle, Dataset.load(options.data))
    requests = [pb.RecommendRequest(item_ids=case.items).SerializeToString() for case in cases]
    # Each history comes several times; that they are remembered is not what this is about.
    fixed = ["--policy", "deepest", "--feedback-share", "0", "--reuse-mb", "0"]
    with started(options.bundle, *fixed) as server:
        capacity = uvloop.run(capacity_of(server, requests))
    result: dict[str, Any] = {"capacity_per_s": round(capacity, 1)}
    quality = {depth: found["ndcg@10"].value for depth, found in bundle.manifest.quality.items()}
    for name, device in _profiles(options.bundle):
        for backlog in BACKLOGS:
            given = [*fixed, "--profile", device, *(["--backlog", str(backlog)] if backlog else [])]
            with started(options.bundle, *given) as server:
                rows = uvloop.run(loads(server, requests, capacity, options.seconds))
            rows = [row | {"quality_goodput": quality_goodput(row, quality, options.seconds)} for row in rows]
            result[f"{name}backlog_{backlog or 'default'}"] = rows
    config = {
        "bundle": bundle.manifest.name,
        "width": bundle.manifest.model.width,
        "mean_history": round(sum(len(case.items) for case in cases) / len(cases), 1),
        "deadline_ms": DEADLINE_S * 1e3,
        "load_s": options.seconds,
    }
    yield Run(config, result, SEED, options.name)


def _profiles(bundle: Path) -> Iterator[tuple[str, str]]:
    """How an arm's name begins, and its profile: with depth 0 where the bundle has it, and without."""
    text = PROFILE.read_text(encoding="utf-8")
    with Bundle.open(bundle) as opened, tempfile.TemporaryDirectory() as folder:
        if opened.counting is not None:
            yield "depth_0_", PROFILE.stem
        without = Path(folder) / "without.yaml"
        without.write_text(
            text.replace("depths: [0, ", "depths: [").replace(f"name: {PROFILE.stem}", "name: without-depth-0")
        )
        yield "", str(without)


def render(run: StoredRun) -> str:
    """A row per backlog and load."""
    result, config = run["result"], run["config"]
    rows = []
    for name in [name for name in ARMS if name in result]:
        peak, backlog = max(row["goodput_per_s"] for row in result[name]), name.rpartition("_")[2]
        zero = "yes" if name.startswith("depth_0") else "no"
        for row in result[name]:
            cells = {"quality_goodput": None, **dict.fromkeys(STATUSES, 0), **row["statuses"]}
            rows.append({**cells, **row, "zero": zero, "backlog": backlog, "share": row["goodput_per_s"] / peak})
    return paragraphs(
        f"## More load than the server can bear, width {config['width']}",
        f"Bundle {config['bundle']}, histories of {config['mean_history']:g} items in the mean, Poisson arrivals;"
        f" each request wants its answer within {config['deadline_ms']:g} ms and says so. Load as a multiple of the"
        f" {result['capacity_per_s']:,.0f} requests/s that a closed loop gets at the deepest depth. Client and"
        " server share two cores.",
        table_of(
            rows,
            "depth 0={zero} | backlog={backlog} | load={factor:g} x | offered/s={offered_per_s:,.0f}"
            " | goodput/s={goodput_per_s:,.0f} | NDCG@10/s={quality_goodput:.1f}"
            " | of its peak={share:.0%} | answered p99 ms={answered_p99_ms:.1f}"
            " | refused p50 ms={refused_p50_ms:.1f} | refused p99 ms={refused_p99_ms:.1f} | OK={OK}"
            " | RESOURCE_EXHAUSTED={RESOURCE_EXHAUSTED} | CANCELLED={CANCELLED}"
            " | DEADLINE_EXCEEDED={DEADLINE_EXCEEDED} | memory MB={memory_grown_mb:+.1f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "5 min, the bundle's data",
    {"bundle": Path, "--data": Path, "--seconds": LOAD_S, "--name": "overload"},
    measure,
    of_runs(render, "overload", "overload-wide"),
)
