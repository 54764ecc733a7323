"""Fixed depths under growing load, beside servers that a user could write around the same engines.

The servers take turns, each time in a new process on a core of its own; the client has another. All have the same
engines and item vectors and give the same items; histories are as long as the data's, their items in an order of their
own, so that no cache helps; Fathom's settings are the defaults. At depths 4 and 16: requests per second with 32 in
flight, latency with one, and how many requests are answered within 25 ms when they arrive at random moments. Writes
results/peers.json.

``by hand``: grpc.aio, which runs each request alone. ``mosec``: batches of up to 32, as Fathom's; only where the
package mosec is installed. Triton is not among them: its server is no Python package.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fathom.benchmarks import http1_load, http2_load
from fathom.benchmarks.http2_load import Report
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, on_core, started, started_module
from fathom.benchmarks.systems import by_hand
from fathom.benchmarks.systems.front import CLIENT_CORE, DEPTHS, IN_FLIGHT, SERVER_CORE, WARM_UP_S, Side, checked
from fathom.benchmarks.systems.overload import requests_of
from fathom.benchmarks.systems.routing_server import read_cases
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Dataset

WITHIN_MS = 25
#: Offered loads, as multiples of what Fathom answers at 32 in flight.
FACTORS = (0.25, 0.5, 0.65, 0.8, 1.0, 1.5, 2.0)
CONNECTIONS = 4
#: More than any of them answers in a second with its warm-up, so that no history comes twice.
MOST_PER_S = 5_000
SECONDS, TURNS = 3.0, 5
FATHOM, BY_HAND, MOSEC = "fathom", "by hand", "mosec"
LOADS = len(FACTORS) + 2
#: Only to be imported where mosec is installed.
MOSEC_SERVER = "fathom.benchmarks.systems.mosec_server"


class Client:
    """The load on one server, over what it speaks."""

    def __init__(self, name: str, server: StartedServer) -> None:
        self._name, self._server = name, server
        self._http1 = name == MOSEC

    def closed(self, messages: Sequence[bytes], in_flight: int, seconds: float) -> dict[str, float]:
        """Requests per second, median latency, and processor time of a request, with so many in flight."""
        load = http1_load.closed if self._http1 else partial(http2_load.closed, connections=1)
        warm_up = len(messages) // 5
        load(self._server.address, messages[:warm_up], in_flight, seconds=min(WARM_UP_S, seconds))
        before_s = self._server.cpu_s()
        report = checked(load(self._server.address, messages[warm_up:], in_flight, seconds=seconds), self._name)
        return {
            "requests_per_s": report.per_s(),
            "p50_ms": report.quantile_ms("OK", 0.5) or 0.0,
            "failed": float(np.count_nonzero(report.statuses)),
            "cpu_us": (self._server.cpu_s() - before_s) / len(report.due_s) * 1e6,
        }

    def open(self, messages: Sequence[bytes], per_s: float, seconds: float, seed: int) -> dict[str, float]:
        """Answers in time, per second and of all."""
        load = http1_load.open if self._http1 else partial(http2_load.open, connections=CONNECTIONS)
        report: Report = load(self._server.address, messages, per_s, seconds=seconds, deadline_ms=WITHIN_MS, seed=seed)
        good = np.count_nonzero((report.statuses == 0) & (report.took_ms <= WITHIN_MS))
        return {
            "offered_per_s": len(report.due_s) / seconds,
            "goodput_per_s": good / seconds,
            "in_time": good / len(report.due_s),
        }


def sides_of(bundle: Path) -> dict[str, Side]:
    """Those that can run here."""
    sides: dict[str, Side] = {
        FATHOM: partial(started, bundle),
        BY_HAND: partial(started_module, by_hand.__name__, str(bundle)),
    }
    if find_spec(MOSEC):
        sides[MOSEC] = partial(started_module, MOSEC_SERVER, str(bundle))
    return sides


def left_out() -> str:
    """Which servers are not measured here, and why."""
    mosec = "" if find_spec(MOSEC) else "Without mosec, which is not installed. "
    return mosec + "Without Triton, whose server is no Python package."


def one_side(
    name: str, side: Side, cases: Sequence[Sequence[str]], base: Mapping[int, float], seconds: float, turn: int
) -> dict[int, dict[str, Any]]:
    """Every load on one server, by depth; ``base``: requests per second of each depth that loads are multiples of."""
    found = {}
    with on_core(SERVER_CORE), side() as server, on_core(CLIENT_CORE):
        client = Client(name, server)
        for depth in DEPTHS:
            messages = iter(requests_of(cases, int(MOST_PER_S * seconds) * LOADS, str(turn), depth))
            count = int(MOST_PER_S * seconds)
            loads = [
                client.open(list(islice(messages, count)), factor * base[depth], seconds, turn)
                for factor in FACTORS
                if base
            ]
            found[depth] = {
                "busy": client.closed(list(islice(messages, count)), IN_FLIGHT, seconds),
                "alone": client.closed(list(islice(messages, count)), 1, seconds),
                "loads": loads,
            }
    return found


def compare(bundle: Path, cases: Sequence[Sequence[str]], seconds: float, turns: int) -> dict[str, Any]:
    """All sides in turns."""
    sides = sides_of(bundle)
    first = one_side(FATHOM, sides[FATHOM], cases, {}, seconds, turns)
    base = {depth: first[depth]["busy"]["requests_per_s"] for depth in DEPTHS}
    taken: dict[int, dict[str, list[dict[str, Any]]]] = {depth: defaultdict(list) for depth in DEPTHS}
    for turn in range(turns):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for depth, row in one_side(name, sides[name], cases, base, seconds, turn).items():
                taken[depth][name].append(row)
    return {
        f"depth_{depth}": {name: summary(rows) for name, rows in sorted(of_sides.items())}
        for depth, of_sides in taken.items()
    }


def summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over the turns of one side."""
    busy = [each["busy"]["requests_per_s"] for each in turns]
    loads: list[dict[str, Any]] = []
    for place, factor in enumerate(FACTORS):
        rows = [each["loads"][place] for each in turns]
        goodput = [row["goodput_per_s"] for row in rows]
        loads.append(
            {"factor": factor, **_medians(rows), "goodput_range": [round(min(goodput), 1), round(max(goodput), 1)]}
        )
    return {
        "busy": _medians([each["busy"] for each in turns]),
        "busy_range": [round(min(busy), 1), round(max(busy), 1)],
        "alone": _medians([each["alone"] for each in turns]),
        "loads": loads,
        "best_goodput_per_s": max(row["goodput_per_s"] for row in loads),
    }


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(median(row[key] for row in rows), 3) for key in rows[0]}


def measure(options: Namespace) -> Iterator[Run]:
    """All sides at both depths."""
    with Bundle.open(options.bundle) as bundle:
        cases = [case.items for case in read_cases(bundle, Dataset.load(options.data))]
        name = bundle.manifest.name
    config = {
        "bundle": name,
        "mean_history": round(sum(map(len, cases)) / len(cases), 1),
        "in_flight": IN_FLIGHT,
        "within_ms": WITHIN_MS,
        "seconds": options.seconds,
        "turns": options.turns,
        "left_out": left_out(),
    }
    yield Run(config, compare(options.bundle, cases, options.seconds, options.turns), 0)


def render(run: StoredRun) -> str:
    """Two tables for each depth."""
    config, parts = run["config"], []
    for depth in DEPTHS:
        sides: Mapping[str, Any] = run["result"][f"depth_{depth}"]
        rows = [{"side": name, **row, **row["busy"], "alone_ms": row["alone"]["p50_ms"]} for name, row in sides.items()]
        parts += [
            f"Depth {depth}:",
            table_of(
                rows,
                "server={side} | requests/s={requests_per_s:,.0f} ({busy_range[0]:,.0f} to {busy_range[1]:,.0f})"
                " | CPU µs={cpu_us:,.0f} | p50 ms, one in flight={alone_ms:.2f}"
                " | best goodput/s={best_goodput_per_s:,.0f}",
            ),
            table_of(
                _by_load(sides),
                "offered/s={offered:,.0f} | " + " | ".join(f"{name}={{{_key(name)}}}" for name in sides),
            ),
        ]
    return paragraphs(
        "## Fixed depths beside servers written by hand around the same engines",
        f"Bundle {config['bundle']}, histories of {config['mean_history']:g} items in the mean, {config['in_flight']}"
        f" in flight; server and client on a core each, medians of {config['turns']} turns, in brackets the range."
        f" Below, for arrivals at random moments, how many are answered within {config['within_ms']} ms."
        f" {config['left_out']}",
        *parts,
    )


def _by_load(sides: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for place in range(len(FACTORS)):
        here = {_key(name): f"{row['loads'][place]['in_time']:.1%}" for name, row in sides.items()}
        rows.append({"offered": next(iter(sides.values()))["loads"][place]["offered_per_s"], **here})
    return rows


def _key(name: str) -> str:
    return name.replace(" ", "_")


BENCHMARK = Benchmark(
    __doc__,
    "12 min, the bundle's data, two cores; mosec where it is installed",
    {"bundle": Path, "--data": Path, "--seconds": SECONDS, "--turns": TURNS},
    measure,
    of_runs(render, "peers"),
)
