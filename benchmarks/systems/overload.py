"""A server under more load than it can bear: goodput, and what becomes of the rest.

Default settings; the server has a core, the client another. Poisson arrivals at multiples of the rate at which the
deepest depth can answer; each request wants its answer within 50 ms and says so. Goodput: requests/s that are answered
in time; quality goodput: the sum of NDCG@10 per second that those answers give on average, by their depths. Histories
are as long as the data's, their items in an order of their own, so that no cache helps. Under the default profile,
which allows depth 0, and under the same without it. Beside each goodput the most that is possible: what a core can
answer if it also has to refuse the rest, from the processor time that an answer and a refusal cost. Writes
results/overload.json, with --name NAME results/overload-NAME.json.
"""

import random
import tempfile
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil

from fathom.benchmarks.http2_load import Report, closed
from fathom.benchmarks.http2_load import open as open_load
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, on_core, started
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE, TRANSPORTS
from fathom.benchmarks.systems.routing_server import read_cases
from fathom.edge_profiles import profile
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

SEED = 0
DEADLINE_MS = 50
FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
LOAD_S = 6.0
TURNS = 5
CONNECTIONS = 4
#: Of the closed loops that measure what an answer costs, and a refusal.
IN_FLIGHT = 64
CAPACITY_S = 3.0
#: A deadline that only the server knows, as gRPC writes it: over before so many calls can be answered.
TOO_SHORT = {"grpc-timeout": "2m"}
#: gRPC's numbers of what a refusal may be, and how little before its deadline the client may end a call by itself.
RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED = 8, 4
WATCH_MS = 1.0
#: More than any closed loop gets answered in a second, so that no history comes twice.
MOST_PER_S = 5_000
#: Its depths are those of a server that says nothing.
PROFILE = Path(profile.__file__).with_name("cloud-cpu.yaml")


class Costs(NamedTuple):
    """Requests/s that a closed loop gets at the deepest depth, and microseconds of the server's processor time.

    ``answer_us``: of an answer at the shallowest depth that the profile allows; ``refusal_us``: of a refusal.
    """

    capacity_per_s: float
    answer_us: float
    refusal_us: float

    def possible_per_s(self, offered_per_s: float) -> float:
        """The most answers per second that one core can give of so many requests, if it refuses the others."""
        left_us = 1e6 - offered_per_s * self.refusal_us
        more_us = max(self.answer_us - self.refusal_us, 1.0)
        return min(offered_per_s, max(0.0, left_us) / more_us)


def requests_of(cases: Sequence[Sequence[str]], count: int, seed: str, depth: int | None = None) -> list[bytes]:
    """So many encoded requests with the histories' items, each in an order of its own; a seed has its own."""
    rng = random.Random(seed)
    return [
        pb.RecommendRequest(item_ids=rng.sample(case, len(case)), depth=depth).SerializeToString()
        for case in (cases[number % len(cases)] for number in range(count))
    ]


def costs_of(
    server: StartedServer, cases: Sequence[Sequence[str]], depths: tuple[int, int], seconds: float, turn: int
) -> Costs:
    """Of one core, from closed loops; ``depths``: the shallowest and the deepest."""
    shallow, deep = depths

    def loop(depth: int, metadata: Mapping[str, str] | None = None) -> tuple[Report, float]:
        messages = requests_of(cases, int(MOST_PER_S * seconds), f"{depth} {metadata} {turn}", depth)
        before_s = server.cpu_s()
        report = closed(server.address, messages, IN_FLIGHT, CONNECTIONS, seconds, metadata=metadata)
        return report, (server.cpu_s() - before_s) * 1e6

    capacity, _ = loop(deep)
    refused, spent_us = loop(deep, TOO_SHORT)
    refusal_us = spent_us / len(refused.due_s)
    answered, spent_us = loop(shallow)
    answers = int(np.count_nonzero(answered.statuses == 0))
    answer_us = (spent_us - (len(answered.due_s) - answers) * refusal_us) / max(answers, 1)
    return Costs(capacity.per_s(), answer_us, refusal_us)


def load(
    server: StartedServer, messages: Sequence[bytes], per_s: float, seconds: float, seed: int = SEED
) -> dict[str, Any]:
    """One load, and what it cost the server."""
    process = psutil.Process(server.pid)
    rss, cpu_s = process.memory_info().rss, server.cpu_s()
    report = open_load(server.address, messages, per_s, CONNECTIONS, seconds, DEADLINE_MS, keep=True, seed=seed)
    return {
        **summarise(report),
        "server_cpu": round((server.cpu_s() - cpu_s) / seconds, 3),
        "client_cpu": round(report.cpu_s / seconds, 3),
        "memory_grown_mb": round((process.memory_info().rss - rss) / 1e6, 2),
    }


def summarise(report: Report) -> dict[str, Any]:
    """Goodput, and milliseconds: of answers from when they were due, of refusals from when they were sent."""
    timely = np.flatnonzero((report.statuses == 0) & (report.took_ms <= DEADLINE_MS))
    depths = Counter(pb.RecommendResponse.FromString(report.answers[number]).depth for number in timely.tolist())
    refused = (report.ended_s - report.sent_s)[refusals(report)] * 1e3
    return {
        "requests": len(report.due_s),
        "offered_per_s": round(len(report.due_s) / report.seconds, 1),
        "goodput_per_s": round(len(timely) / report.seconds, 1),
        "statuses": report.counts(),
        "refused": len(refused),
        "unsent": int(np.count_nonzero(np.isnan(report.sent_s))),
        "sent_late_p99_ms": round(report.late_ms(), 2),
        "answered_p99_ms": _rounded(report.quantile_ms("OK", 0.99)),
        "refused_p50_ms": _rounded(float(np.quantile(refused, 0.5)) if len(refused) else None),
        "refused_p99_ms": _rounded(float(np.quantile(refused, 0.99)) if len(refused) else None),
        "depths": {str(depth): count for depth, count in sorted(depths.items())},
    }


def refusals(report: Report) -> np.ndarray:
    """Which calls the server ended without an answer, before the client's own watch did."""
    early = report.took_ms < DEADLINE_MS - WATCH_MS
    return early & np.isin(report.statuses, [RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def quality_goodput(row: Mapping[str, Any], quality: Mapping[int, float], seconds: float) -> float:
    """NDCG@10 per second of the answers in time, given what each depth has on average."""
    total: float = sum(count * quality[int(depth)] for depth, count in row["depths"].items())
    return round(total / seconds, 3)


def turn_of(
    bundle: Path,
    options: Sequence[str],
    cases: Sequence[Sequence[str]],
    depths: tuple[int, int],
    seconds: float,
    turn: int,
) -> tuple[Costs, list[dict[str, Any]]]:
    """What a server's answers and refusals cost, then every load on it."""
    with on_core(SERVER_CORE), started(bundle, *options) as server, on_core(CLIENT_CORE):
        costs = costs_of(server, cases, depths, min(CAPACITY_S, seconds), turn)
        rows = []
        for factor in FACTORS:
            per_s = factor * costs.capacity_per_s
            messages = requests_of(cases, int(1.2 * per_s * seconds) + 100, f"{factor} {turn}")
            row = load(server, messages, per_s, seconds, turn)
            rows.append(
                {"factor": factor, **row, "possible_per_s": round(costs.possible_per_s(row["offered_per_s"]), 1)}
            )
    return costs, rows


def middle(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the figures of one load over its turns, sums of what is counted, and the range of the goodput."""
    found: dict[str, Any] = {}
    for key, value in turns[0].items():
        if isinstance(value, Mapping):
            found[key] = dict(sum((Counter(row[key]) for row in turns), Counter()))
        else:
            known = [row[key] for row in turns if row[key] is not None]
            found[key] = round(median(known), 3) if known else None
    goodput = [row["goodput_per_s"] for row in turns]
    counted = {key: sum(row[key] for row in turns) for key in ("requests", "refused", "unsent")}
    return {**found, **counted, "goodput_range": [min(goodput), max(goodput)]}


def measure(options: Namespace) -> Iterator[Run]:
    """Every load, in turns of the profiles and transports."""
    with Bundle.open(options.bundle) as bundle:
        cases = [case.items for case in read_cases(bundle, Dataset.load(options.data))]
        quality = {depth: found["ndcg@10"].value for depth, found in bundle.manifest.quality.items()}
        depths, manifest, has_zero = bundle.depths, bundle.manifest, bundle.counting is not None
    taken: dict[str, list[tuple[Costs, list[dict[str, Any]]]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        arms = _arms(Path(folder), has_zero=has_zero)
        for turn in range(options.turns):
            for name, given in arms.items():
                shallowest = 0 if has_zero and name.endswith("depth 0") else min(depths)
                pair = (shallowest, max(depths))
                taken[name].append(turn_of(options.bundle, given, cases, pair, options.seconds, turn))
    result = {name: arm_of(turns, quality, options.seconds) for name, turns in taken.items()}
    config = {
        "bundle": manifest.name,
        "width": manifest.model.width,
        "mean_history": round(sum(map(len, cases)) / len(cases), 1),
        "deadline_ms": DEADLINE_MS,
        "load_s": options.seconds,
        "turns": options.turns,
        "connections": CONNECTIONS,
    }
    yield Run(config, {"arms": result}, SEED, options.name)


def arm_of(
    turns: Sequence[tuple[Costs, list[dict[str, Any]]]], quality: Mapping[int, float], seconds: float
) -> dict[str, Any]:
    """Of a profile and transport: medians of what was measured, and every turn."""
    for _, rows in turns:
        for row in rows:
            row["quality_goodput"] = quality_goodput(row, quality, seconds)
    costs = {key: round(median(getattr(each, key) for each, _ in turns), 1) for key in Costs._fields}
    loads = [middle([rows[place] for _, rows in turns]) for place in range(len(FACTORS))]
    return {**costs, "rows": loads, "turns": [rows for _, rows in turns]}


def without_depth_0(folder: Path) -> Path:
    """A file in a folder with the default profile, but for depth 0."""
    text = PROFILE.read_text(encoding="utf-8")
    without = folder / "without.yaml"
    without.write_text(
        text.replace("depths: [0, ", "depths: [").replace(f"name: {PROFILE.stem}", "name: without-depth-0")
    )
    return without


def _arms(folder: Path, *, has_zero: bool) -> dict[str, tuple[str, ...]]:
    """Options by name: each transport, with depth 0 where the bundle has it, and without."""
    without = without_depth_0(folder)
    profiles = {"with depth 0": ()} if has_zero else {}
    return {
        f"{transport}, {name}": ("--transport", transport, *given)
        for transport in TRANSPORTS
        for name, given in {**profiles, "without depth 0": ("--profile", str(without))}.items()
    }


def render(run: StoredRun) -> str:
    """A table for each arm, a row per load."""
    config, parts = run["config"], []
    for name, arm in run["result"]["arms"].items():
        peak = max(row["goodput_per_s"] for row in arm["rows"])
        rows = [
            {**row, "share": row["goodput_per_s"] / min(peak, row["offered_per_s"]), "ends": _ends(row)}
            for row in arm["rows"]
        ]
        parts += [
            f"Transport {name}: a closed loop gets {arm['capacity_per_s']:,.0f} requests/s at the deepest depth; an"
            f" answer at the shallowest takes {arm['answer_us']:.0f} µs of the server's core, a refusal"
            f" {arm['refusal_us']:.0f} µs.",
            table_of(
                rows,
                "load={factor:g} x | offered/s={offered_per_s:,.0f} | goodput/s={goodput_per_s:,.0f}"
                " ({goodput_range[0]:,.0f} to {goodput_range[1]:,.0f}) | of offered or peak={share:.0%}"
                " | possible/s={possible_per_s:,.0f} | NDCG@10/s={quality_goodput:.1f}"
                " | answered p99 ms={answered_p99_ms:.1f} | refused p50 ms={refused_p50_ms:.1f}"
                " | refused p99 ms={refused_p99_ms:.1f} | refused={refused:,} | not sent={unsent:,}"
                " | how they ended={ends}"
                " | server's CPU={server_cpu:.0%} | client's={client_cpu:.0%} | memory MB={memory_grown_mb:+.1f}",
            ),
        ]
    return paragraphs(
        f"## More load than the server can bear, width {config['width']}",
        f"Bundle {config['bundle']}, histories of {config['mean_history']:g} items in the mean, default settings,"
        f" server and client on a core each, {config['connections']} connections. Poisson arrivals; each request wants"
        f" its answer within {config['deadline_ms']:g} ms and says so. Medians of {config['turns']} turns, in brackets"
        " the range; beside it the share of what was offered or, where that is less, of the peak. Possible: what one"
        " core could answer if it refused the others, from what an answer and a refusal"
        " cost it. Not sent: there was no room on the connections before the deadline, so the server never knew of it.",
        *parts,
    )


def _ends(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in row["statuses"].items())


BENCHMARK = Benchmark(
    __doc__,
    "20 min, the bundle's data, two cores",
    {"bundle": Path, "--data": Path, "--seconds": LOAD_S, "--turns": TURNS, "--name": "overload"},
    measure,
    of_runs(render, "overload", "overload-wide"),
)
