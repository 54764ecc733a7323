"""How far a request is from the physical limit: its processor time by stage, beside the least that each can take.

The load of ``front``: new histories of 50 items, 32 in flight, at depths 0, 4 and 16, server and client on a core each;
what is spent where is told as in ``stages``. The least, measured in the same run on the server's core: for the engine,
the FLOPs of its matrix products at the speed of a large one; for the search, the larger of its FLOPs and of reading all
item vectors once for 32 requests; for counting, reading the neighbours of the history's items; for decoding and
encoding, protobuf alone; for the transport, an HTTP/2 server in C that answers with a file (c_echo.py). Beside it a
bare grpc.aio echo. Needs the extra bench.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.drawing import GREY, INK, STYLE, new_panels
from fathom.benchmarks.experiments.efficiency import SIDE, layer_flops, products
from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.interleaved import interleaved
from fathom.benchmarks.load import HISTORY, made_up
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import catalogue_ids, on_core, started, started_module
from fathom.benchmarks.systems import echo_server, stages
from fathom.benchmarks.systems.c_echo import PROGRAMS, program_of, started_c_echo
from fathom.benchmarks.systems.front import CLIENT_CORE, IN_FLIGHT, SERVER_CORE, WARM_UP_S, Side, an_answer, checked
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest_file import read_manifest

DEPTHS = (0, 4, 16)
SECONDS, TURNS = 6.0, 3
#: More than a server answers in a second at a depth, so that no history comes twice.
MOST_PER_S = {0: 15_000, 4: 6_000, 16: 3_000}
#: Of the measurements on one core, which take microseconds to milliseconds.
ROUNDS = 30
#: Calls of a measurement that takes microseconds.
REPEATED = 200
ECHO = "grpc.aio echo"
PICTURE = "limits"

#: What the page calls a stage -> the stages of ``stages``.
STAGES = {
    "engine": ("engine",),
    "search": ("search",),
    "counting": ("counting",),
    "decode, choose, encode": (
        "read the message",
        "choose the depth",
        "prefix cache",
        "word the answer",
        "metrics",
        "the rest of the way",
    ),
    "queue and batches": ("wait in a lane", "batches"),
    "transport": (stages.GRPC, stages.POLLER, stages.GRPC_THREADS),
}
#: Okabe and Ito's palette, as the other pictures.
COLOURS = dict(zip(STAGES, ("#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#e69f00", "#d55e00"), strict=True))


def stage_us(spent: Mapping[str, float]) -> dict[str, float]:
    """Microseconds of each of STAGES, of what ``stages.watch`` tells."""
    return {stage: sum(spent.get(part, 0.0) for part in parts) for stage, parts in STAGES.items()}


def core(vectors_bytes: int) -> dict[str, float]:
    """What this core can do: GFLOP/s of a large matrix product, and GB/s when it reads as much as the vectors take."""
    halves = np.ones((2, max(1, vectors_bytes // 8)), np.float32)
    calls: dict[str, Any] = {**products(), "read": lambda: [np.dot(*halves) for _ in range(REPEATED)]}
    took = interleaved(calls, ROUNDS)
    return {
        "gflops": round(max(2 * SIDE**3 / took[name] for name in ("numpy", "onnxruntime")) / 1e9, 1),
        "read_gb_s": round(REPEATED * halves.nbytes / took["read"] / 1e9, 2),
    }


def protobuf_us(message: bytes, answer: bytes) -> float:
    """Microseconds of decoding a request and encoding its answer."""
    response = pb.RecommendResponse.FromString(answer)

    def call() -> None:
        for _ in range(REPEATED):
            pb.RecommendRequest.FromString(message)
            response.SerializeToString()

    return interleaved({"call": call}, ROUNDS)["call"] / REPEATED * 1e6


def least_us(
    bundle: Bundle, depth: int, histories: Sequence[Sequence[int]], can: Mapping[str, float]
) -> dict[str, float]:
    """Microseconds that engine, search and counting take at least; ``can``: see ``core``. 0 for what does not run."""
    shape, vectors = bundle.manifest.model, bundle.vectors
    full, last = layer_flops(shape.block, shape.width, min(HISTORY, shape.max_history))
    per_us, read_per_us = can["gflops"] * 1e3, can["read_gb_s"] * 1e3
    engine = ((depth - 1) * full + last) / per_us if depth else 0.0
    read = vectors.rows.nbytes / read_per_us / IN_FLIGHT
    search = max(2 * vectors.rows.size / per_us, read) if depth else 0.0
    counting = bundle.counting
    weighs = bundle.manifest.counting.weights.get(depth, 0.0) if bundle.manifest.counting else 0.0
    counted = 0.0
    if counting is not None and (depth == 0 or weighs):
        newest = [np.array(history[-counting.window :]) for history in histories]
        neighbours = [int((counting.offsets[items + 1] - counting.offsets[items]).sum()) for items in newest]
        each = counting.neighbours.itemsize + counting.weights.itemsize
        counted = float(np.mean(neighbours)) * each / read_per_us
    return {"engine": engine, "search": search, "counting": counted}


def echoes(answer: bytes) -> dict[str, Side]:
    """The echoes that can run here."""
    found: dict[str, Side] = {ECHO: partial(started_module, echo_server.__name__, answer.hex())}
    return found | {name: partial(started_c_echo, name, answer) for name in PROGRAMS if program_of(name)}


def left_out() -> str:
    """Which echoes are not measured here, and why."""
    missing = [f"{name} ({package})" for name, package in PROGRAMS.items() if not program_of(name)]
    return f"Not installed here: {', '.join(missing)}." if missing else ""


def echo_us(name: str, side: Side, messages: Sequence[bytes], seconds: float) -> float:
    """Microseconds of the server's processor time for each call."""
    with on_core(SERVER_CORE), side() as server, on_core(CLIENT_CORE):
        closed(server.address, messages, IN_FLIGHT, 1, min(WARM_UP_S, seconds))
        before_s = server.cpu_s()
        report = checked(closed(server.address, messages, IN_FLIGHT, 1, seconds), name)
        return (server.cpu_s() - before_s) / len(report.due_s) * 1e6


def compare(path: Path, seconds: float, turns: int) -> dict[str, Any]:
    """Each turn: what the core can do, every depth in a new server, and every echo; medians."""
    spy, ids = stages.py_spy(), catalogue_ids(path)
    answer = an_answer(path, made_up(ids, DEPTHS[1], 1, "an answer")[0])
    spent: dict[tuple[int, str], list[float]] = defaultdict(list)
    machine: dict[str, list[float]] = defaultdict(list)
    echoed: dict[str, list[float]] = defaultdict(list)
    with Bundle.open(path) as bundle:
        if bundle.counting is None:
            raise ConfigError(f"{path}: has no counting exit, so no depth 0")
        for turn in range(turns):
            messages = {d: made_up(ids, d, int(MOST_PER_S[d] * (seconds + 2)), f"{d} {turn}") for d in DEPTHS}
            with on_core(SERVER_CORE):
                for key, value in core(bundle.vectors.rows.nbytes).items():
                    machine[key].append(value)
                machine["protobuf_us"].append(protobuf_us(messages[DEPTHS[1]][0], answer))
            with on_core(SERVER_CORE), started(path) as server, on_core(CLIENT_CORE):
                for depth in DEPTHS:
                    closed(server.address, messages[depth][-1_000:], IN_FLIGHT, 1, min(WARM_UP_S, seconds))
                    for stage, took in stage_us(stages.watch(server, messages[depth], spy, seconds)).items():
                        spent[depth, stage].append(took)
            for name, side in echoes(answer).items():
                echoed[name].append(echo_us(name, side, messages[DEPTHS[1]], seconds / 2))
        can = {key: round(median(values), 3) for key, values in machine.items()}
        index = bundle.catalogue.index
        some = [pb.RecommendRequest.FromString(each).item_ids for each in messages[DEPTHS[1]][:REPEATED]]
        histories = [[index[item] for item in each] for each in some]
        least = {depth: least_us(bundle, depth, histories, can) for depth in DEPTHS}
    return {"machine": can, **summary(spent, least, {name: median(each) for name, each in echoed.items()}, can)}


def summary(
    spent: Mapping[tuple[int, str], Sequence[float]],
    least: Mapping[int, Mapping[str, float]],
    echoed: Mapping[str, float],
    can: Mapping[str, float],
) -> dict[str, Any]:
    """A row for each depth and stage; the transport's least is that of the cheapest echo in C, None without one."""
    in_c = [took for name, took in echoed.items() if name != ECHO]
    rows = []
    for (depth, stage), took in spent.items():
        floors: dict[str, float | None] = {**least[depth], "queue and batches": 0.0}
        floors |= {"decode, choose, encode": can["protobuf_us"], "transport": min(in_c, default=None)}
        floor = floors[stage]
        rows.append(
            {
                "depth": depth,
                "stage": stage,
                "cpu_us": round(median(took), 1),
                "cpu_range_us": [round(min(took), 1), round(max(took), 1)],
                "least_us": None if floor is None else round(floor, 2),
            }
        )
    return {"rows": rows, "echoes_us": {name: round(took, 1) for name, took in echoed.items()}}


def measure(options: Namespace) -> Iterator[Run]:
    """Every depth, and every echo that can run here."""
    config = {
        "bundle": read_manifest(options.bundle).name,
        "history": HISTORY,
        "in_flight": IN_FLIGHT,
        "seconds": options.seconds,
        "turns": options.turns,
        "left_out": left_out(),
    }
    limit_blas_threads(1)
    yield Run(config, compare(options.bundle, options.seconds, options.turns), 0)


def by_depth(run: StoredRun) -> dict[int, list[Mapping[str, Any]]]:
    """The rows of each depth, with what is left above the least."""
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in run["result"]["rows"]:
        least = row["least_us"]
        found[row["depth"]].append({**row, "left_us": None if least is None else row["cpu_us"] - least})
    return found


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row for all stages of a depth: least and rest are of the stages whose least is known."""
    known = [row for row in rows if row["least_us"] is not None]
    sums = {key: float(sum(row[key] for row in known)) for key in ("least_us", "left_us")}
    return {"stage": "all", "cpu_us": float(sum(row["cpu_us"] for row in rows)), **sums}


def render(run: StoredRun) -> str:
    """A table for each depth."""
    config, machine, parts = run["config"], run["result"]["machine"], []
    for depth, rows in by_depth(run).items():
        everything = totals(rows)
        times = 1 + everything["left_us"] / everything["least_us"]
        unknown = [row["stage"] for row in rows if row["least_us"] is None]
        without = f" without {', '.join(unknown)}, whose limit is not known" if unknown else ""
        parts += [
            f"Depth {depth}: {everything['cpu_us']:,.0f} µs; {times:.1f} times the limit{without}.",
            table_of(
                [*rows, everything],
                "stage={stage} | CPU µs={cpu_us:,.1f} | at least={least_us:,.1f} | left={left_us:,.1f}",
            ),
        ]
    echoed = ", ".join(f"{name} {took:.1f}" for name, took in run["result"]["echoes_us"].items())
    return paragraphs(
        "## How far a request is from the physical limit",
        f"Bundle {config['bundle']}, histories of {config['history']} items, all of them new, {config['in_flight']} in"
        f" flight; server and client on a core each, medians of {config['turns']} turns. Microseconds of processor time"
        f" of a request, and the least that each stage can take on this core: {machine['gflops']:,.0f} GFLOP/s in a"
        f" large matrix product, {machine['read_gb_s']:,.1f} GB/s when it reads as much as the item vectors take, and"
        f" protobuf alone in {machine['protobuf_us']:.1f} µs. Echoes of the same messages, in µs: {echoed}; the"
        f" cheapest in C is the least that a transport takes. {config['left_out']}",
        *parts,
        f"![Processor time of a request by stage, beside the limit](figures/{PICTURE}.svg)",
    )


def limits_figure(run: StoredRun) -> Figure:
    """Two stacked bars for each depth, what a request takes and the least, and a bar for each echo."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_panels(["Processor time of one request, µs"], "", "")
        figure.set_size_inches(7.4, 4.2)
        places: list[float] = []
        names: list[str] = []

        def bar(name: str, parts: Mapping[str, float], gap: float) -> None:
            place = places[-1] + gap if places else 0.0
            bottom = 0.0
            for stage, took in parts.items():
                axes.bar(place, took, 0.8, bottom, color=COLOURS.get(stage, GREY))
                bottom += took
            text = f"{bottom:,.0f}" if bottom >= 10 else f"{bottom:.1f}"
            axes.annotate(text, (place, bottom), (0, 2), textcoords="offset points", ha="center", size=8, color=INK)
            places.append(place)
            names.append(name)

        for depth, rows in by_depth(run).items():
            bar(f"depth {depth}", {row["stage"]: row["cpu_us"] for row in rows}, 1.6)
            bar("limit", {row["stage"]: row["least_us"] or 0.0 for row in rows}, 0.9)
        for number, (name, took) in enumerate(run["result"]["echoes_us"].items()):
            bar(name.replace(" ", "\n"), {"echo": took}, 0.9 if number else 1.6)
        axes.set_xticks(places, names)
        for stage, colour in COLOURS.items():
            axes.bar(0, 0, color=colour, label=stage)
        axes.bar(0, 0, color=GREY, label="echo, nothing else")
        axes.legend(loc="upper left", frameon=False, fontsize=8, reverse=True)
        return figure


BENCHMARK = Benchmark(
    __doc__,
    "4 min, two cores, py-spy; nghttpd or nginx where they are installed",
    {"bundle": Path, "--seconds": SECONDS, "--turns": TURNS},
    measure,
    of_runs(render, "limits"),
)
