"""The Triton repository that Fathom writes, beside a batching model written by hand around the same engines.

A real Triton runs them in turns, on one core; the client has another. Both models get the batches that Triton makes of
requests with a fixed depth, and must give the same items. Triton's files are those of the package nvidia-pytriton, in
the environment that the benchmark ``peers`` makes for it, too.
"""

import random
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.infer import METHOD, infer_message
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import on_core
from fathom.benchmarks.systems.front import CLIENT_CORE, DEPTHS, IN_FLIGHT, SERVER_CORE, checked
from fathom.benchmarks.systems.peers.adapters import TRITON, triton_of
from fathom.benchmarks.systems.peers.environments import environment
from fathom.benchmarks.systems.routing_server import read_cases
from fathom.benchmarks.triton_server import BY_HAND, StartedTriton, Triton, started_triton, write_repository
from fathom.errors import FathomError
from fathom.exporter.formats.triton import MODEL
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SECONDS, TURNS = 3.0, 5
#: More than it answers in a second, so that no history comes twice.
MOST_PER_S = 3_000
COMPARED = 50


def check_same(server: StartedTriton, cases: Sequence[Sequence[str]]) -> None:
    """Raise FathomError where the two models answer different items."""
    for case in cases[:COMPARED]:
        for depth in DEPTHS:
            one, two = (server.infer(name, item_ids=list(case), depth=[depth]) for name in (MODEL, BY_HAND))
            if one["recommended"] != two["recommended"]:
                raise FathomError(f"depth {depth}: {one['recommended']} and {two['recommended']}")


def figures(server: StartedTriton, model: str, messages: Sequence[bytes], in_flight: int, seconds: float) -> Any:
    """A closed loop: requests per second, latency, processor time of the server and requests in a batch."""
    warm_up = len(messages) // 5
    closed(server.grpc.address, messages[:warm_up], in_flight, 1, seconds / 5, method=METHOD)
    cpu_s, (requests, batches) = server.grpc.cpu_s(), server.runs(model)
    report = checked(closed(server.grpc.address, messages[warm_up:], in_flight, 1, seconds, method=METHOD), model)
    after, ran = server.runs(model)
    return {
        "requests_per_s": report.per_s(),
        "p50_ms": report.quantile_ms("OK", 0.5),
        "cpu_us": (server.grpc.cpu_s() - cpu_s) / len(report.due_s) * 1e6,
        "batch": (after - requests) / max(1, ran - batches),
    }


def compare(triton: Triton, bundle: Path, cases: Sequence[Sequence[str]], seconds: float, turns: int) -> dict[str, Any]:
    """Both models in turns, in one server."""
    rng = random.Random(0)
    taken: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        write_repository(bundle, repository)
        with on_core(SERVER_CORE), started_triton(triton, repository) as server, on_core(CLIENT_CORE):
            check_same(server, cases)
            for turn in range(turns):
                for model in (MODEL, BY_HAND) if turn % 2 else (BY_HAND, MODEL):
                    for depth in DEPTHS:
                        for in_flight in (1, IN_FLIGHT):
                            histories = [rng.choice(cases) for _ in range(int(MOST_PER_S * seconds))]
                            messages = [infer_message(model, rng.sample(case, len(case)), depth) for case in histories]
                            row = figures(server, model, messages, in_flight, seconds)
                            taken.setdefault((depth, in_flight, model), []).append(row)
    return {
        "rows": [
            {"depth": depth, "in_flight": in_flight, "model": model}
            | {key: round(median(row[key] for row in rows), 3) for key in rows[0]}
            for (depth, in_flight, model), rows in sorted(taken.items())
        ]
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Both models, at both depths."""
    with Bundle.open(options.bundle) as bundle:
        cases = [case.items for case in read_cases(bundle, Dataset.load(options.data))]
        name = bundle.manifest.name
    config = {"bundle": name, "mean_history": round(sum(map(len, cases)) / len(cases), 1), "turns": options.turns}
    triton = triton_of(environment("triton", TRITON))
    yield Run(config, compare(triton, options.bundle, cases, options.seconds, options.turns), 0)


def render(run: StoredRun) -> str:
    """A row per depth, number in flight and model."""
    return paragraphs(
        "## In Triton",
        f"Bundle {run['config']['bundle']}, histories of {run['config']['mean_history']:g} items in the mean, a fixed"
        f" depth; server and client on a core each, medians of {run['config']['turns']} turns. `{MODEL}` is what"
        f" `fathom bundle convert --to triton` writes, `{BY_HAND}` a batching model that pads, runs and searches only.",
        table_of(
            run["result"]["rows"],
            "depth={depth} | in flight={in_flight} | model={model} | requests/s={requests_per_s:,.0f}"
            " | p50 ms={p50_ms:.2f} | CPU µs={cpu_us:,.0f} | requests in a batch={batch:.1f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "3 min, the bundle's data, two cores; its environment once 2 min more",
    {"bundle": Path, "--data": Path, "--seconds": SECONDS, "--turns": TURNS},
    measure,
    of_runs(render, "triton"),
)
