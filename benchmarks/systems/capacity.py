"""Does the capacity model keep its word? Predicted p99 and goodput, against a real server at three loads.

In each turn a new server is measured as `fathom capacity --measure` does; the simulated core then predicts, and the
same server is loaded with Poisson arrivals at 50, 80 and 95 % of the most that the model lets it bear. Depth 4, depth
16, and the default policy with a deadline. Server on one core, client on another; histories of 50 random items, each of
which comes once. A load whose client was busy for more than 80 % of its core does not count. Writes
results/capacity.json.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fathom.benchmarks.http2_load import open as open_load
from fathom.benchmarks.load import HISTORY, K, made_up
from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import on_core
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.edge_profiles.profile import load_profile
from fathom.errors import FathomError
from fathom.local import Local, running_server
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import Manifest
from fathom.tools.capacity.costs import CellCost, MeasuredCosts
from fathom.tools.capacity.measure import OPTIONS, ROUTED, Questions, measure_server
from fathom.tools.capacity.plan import CoreCapacity, CoreModel, Wish, plan
from fathom.tools.capacity.report import COSTS_TITLE, cost_rows, plan_facts

PROFILE = "cloud"
LOADS = (0.5, 0.8, 0.95)
#: Goodput counts answers within this time; the policy's requests have it as their deadline too.
WITHIN_MS = 50.0
CALIBRATION_S, LOAD_S, TURNS = 0.8, 5.0, 3
CONNECTIONS = 4
WARM_UP_S = 0.5
MOST_CLIENT = 0.8
#: How far a prediction may lie from what is measured.
TOLERANCE = 0.2
#: What a ratio is taken to, where no answer at all came within the time.
LEAST = 0.1
#: The deployment that docs/capacity.md plans.
EXAMPLE = Wish(10_000_000, 20)
FIGURES = ("p50_ms", "p99_ms", "goodput_per_s")


def arms_of(depths: Sequence[int]) -> dict[str, Wish]:
    """What is asked of a core: the shallowest and the deepest depth, and the default policy with a deadline."""
    engines = [depth for depth in depths if depth]
    fixed = {
        f"depth {depth}": Wish(1, 1, deadline_ms=None, p99_ms=WITHIN_MS, depth=depth)
        for depth in (engines[0], engines[-1])
    }
    return fixed | {"policy": Wish(1, 1, deadline_ms=WITHIN_MS, p99_ms=WITHIN_MS)}


def questions_of(bundle: Path) -> tuple[Questions, Manifest]:
    """What a server is measured with: the same histories as it is loaded with."""
    with Bundle.open(bundle) as opened:
        ids, manifest = list(opened.catalogue.ids), opened.manifest
    length = min(HISTORY, manifest.model.max_history)
    cases = [pb.RecommendRequest.FromString(each).item_ids[:length] for each in made_up(ids, 4, ROUTED, "routed")]
    allowed = load_profile(PROFILE).depths
    depths = [depth for depth in manifest.served_depths if depth in allowed]
    return Questions(ids, depths, [length], cases, f"{length} random items"), manifest


def predicted(model: CoreModel, per_s: float) -> dict[str, float]:
    """By the model, at so many requests per second; of the p99 also at the least and the highest costs."""
    outcome = model.at(per_s)
    low, high = (model.at(per_s, factor).quantile_s(0.99) * 1e3 for factor in model.costs_range)
    return {
        "p99_low_ms": low,
        "p99_high_ms": high,
        "p50_ms": outcome.quantile_s(0.5) * 1e3,
        "p99_ms": outcome.quantile_s(0.99) * 1e3,
        "goodput_per_s": outcome.in_time(WITHIN_MS / 1e3) * per_s,
        "busy": outcome.busy,
        "shallower": outcome.shallower(),
    }


def measured(
    server: Local, ids: Sequence[str], wish: Wish, per_s: float, seconds: float, turn: int
) -> dict[str, float]:
    """The server's answers to Poisson arrivals, after a warm-up."""
    deadline_ms = None if wish.deadline_ms is None else int(wish.deadline_ms)
    messages = made_up(ids, 0, int(1.2 * per_s * (seconds + WARM_UP_S)) + 100, f"{wish.depth} {per_s} {turn}")
    messages = [_at(message, wish.depth) for message in messages]
    warm_up = int(per_s * WARM_UP_S) + 1
    open_load(server.address, messages[:warm_up], per_s, CONNECTIONS, WARM_UP_S, deadline_ms)
    report = open_load(server.address, messages[warm_up:], per_s, CONNECTIONS, seconds, deadline_ms, seed=turn)
    if not np.any(report.statuses == 0):
        raise FathomError(f"{per_s:.0f} requests/s: none was answered")
    timely = (report.statuses == 0) & (report.took_ms <= WITHIN_MS)
    return {
        "p50_ms": report.quantile_ms("OK", 0.5) or 0.0,
        "p99_ms": report.quantile_ms("OK", 0.99) or 0.0,
        # Of what was asked for in the mean: a few seconds of Poisson arrivals are a few per cent more or less.
        "goodput_per_s": float(np.mean(timely)) * per_s,
        "client_busy": report.cpu_s / seconds,
    }


def _at(message: bytes, depth: int | None) -> bytes:
    request = pb.RecommendRequest.FromString(message)
    return pb.RecommendRequest(item_ids=request.item_ids, k=K, depth=depth).SerializeToString()


def compare(bundle: Path, seconds: float, turns: int, calibration_s: float) -> dict[str, Any]:
    """All arms and loads in every turn, in another order each time."""
    questions, manifest = questions_of(bundle)
    arms = arms_of(questions.depths)
    capacities: dict[str, CoreCapacity] = {}
    rows: list[dict[str, Any]] = []
    for turn in range(turns):
        with (
            on_core(SERVER_CORE),
            running_server(bundle, "--profile", PROFILE, *OPTIONS) as server,
            on_core(CLIENT_CORE),
        ):
            costs = measure_server(server, manifest, PROFILE, questions, calibration_s)
            models = {name: _model(costs, manifest, wish) for name, wish in arms.items()}
            capacities = capacities or {name: model.capacity() for name, model in models.items()}
            for name in [*arms][turn % len(arms) :] + [*arms][: turn % len(arms)]:
                for load in LOADS:
                    per_s = load * capacities[name].per_s
                    found = measured(server, questions.ids, arms[name], per_s, seconds, turn)
                    said = predicted(models[name], per_s)
                    row = {"arm": name, "load": load, "turn": turn, "per_s": per_s}
                    rows.append({**row, "predicted": said, "measured": found})
    return {
        "capacities": {name: asdict(each) for name, each in capacities.items()},
        "rows": summary(rows),
        "turns": rows,
        "costs": costs.model_dump(mode="json"),
        "plan": plan_facts(plan(EXAMPLE, costs, load_profile(PROFILE), manifest.model.max_history), costs),
    }


def _model(costs: MeasuredCosts, manifest: Manifest, wish: Wish) -> CoreModel:
    return CoreModel(costs, load_profile(PROFILE), manifest.model.max_history, wish)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each arm and load the medians over the turns that count, and of predicted by measured also the range."""
    found = []
    for arm, load in dict.fromkeys((row["arm"], row["load"]) for row in rows):
        alike = [row for row in rows if (row["arm"], row["load"]) == (arm, load)]
        kept = [row for row in alike if row["measured"]["client_busy"] <= MOST_CLIENT]
        row = {"arm": arm, "load": load, "per_s": round(alike[0]["per_s"], 1), "turns": len(kept)}
        for figure in FIGURES if kept else ():
            ratios = [each["predicted"][figure] / max(LEAST, each["measured"][figure]) for each in kept]
            row |= {
                f"{side}_{figure}": round(median(each[side][figure] for each in kept), 3)
                for side in ("predicted", "measured")
            }
            row[f"{figure}_ratio"] = round(median(ratios), 3)
            row[f"{figure}_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if kept:
            row["predicted_p99_range_ms"] = [
                round(median(each["predicted"][f"p99_{end}_ms"] for each in kept), 3) for end in ("low", "high")
            ]
            row["in_range"] = sum(
                each["predicted"]["p99_low_ms"] <= each["measured"]["p99_ms"] <= each["predicted"]["p99_high_ms"]
                for each in kept
            )
            row["within"] = all(abs(row[f"{figure}_ratio"] - 1) <= TOLERANCE for figure in FIGURES[1:])
        found.append(row)
    return found


def measure(options: Namespace) -> Iterator[Run]:
    """All arms in turns."""
    result = compare(options.bundle, options.seconds, options.turns, options.calibration)
    config = {
        "bundle": result["costs"]["bundle"],
        "profile": PROFILE,
        "history": HISTORY,
        "k": K,
        "within_ms": WITHIN_MS,
        "seconds": options.seconds,
        "calibration_s": options.calibration,
        "turns": options.turns,
    }
    yield Run(config, result, 0)


COLUMNS = (
    "requests={arm} | load={load:.0%} | requests/s={per_s:,.0f} | p50 ms, predicted={predicted_p50_ms:.1f}"
    " | measured={measured_p50_ms:.1f} | p99 ms, predicted={predicted_p99_ms:.1f} | measured={measured_p99_ms:.1f}"
    " | ratio={p99_ms_ratio:.2f} ({p99_ms_ratio_range[0]:.2f} to {p99_ms_ratio_range[1]:.2f})"
    " | p99 ms, predicted range={range} | turns in it={in_range}"
    " | goodput/s, predicted={predicted_goodput_per_s:,.0f} | measured={measured_goodput_per_s:,.0f}"
    " | ratio={goodput_per_s_ratio:.2f} | within 20 %={within} | turns={turns}"
)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["predicted_p99_range_ms"]
    return {
        **row,
        "within": "yes" if row["within"] else "no",
        "range": f"{low:.1f} to {high:.1f}",
    }


def render(run: StoredRun) -> str:
    """A row for each arm and load."""
    config, result = run["config"], run["result"]
    rows = [_shown(row) for row in result["rows"] if row["turns"]]
    bears = ", ".join(
        f"{each['per_s']:,.0f} ({name}; {each['binds']} binds)" for name, each in result["capacities"].items()
    )
    lost = config["turns"] * len(result["rows"]) - sum(row["turns"] for row in result["rows"])
    return paragraphs(
        "## The capacity model, against a real server",
        f"Bundle {config['bundle']}, histories of {config['history']} items, each of them new; server on one core,"
        " client on another. Load: of the most requests/s that the model lets a core bear with a p99 of"
        f" {config['within_ms']:g} ms: {bears}. The policy's requests have that as their deadline too, and at most 5 %"
        f" may get a shallower depth than they want. Goodput: answers within {config['within_ms']:g} ms. Medians of up"
        f" to {config['turns']} turns; ratio: predicted by measured, in brackets its range. Predicted range: with costs"
        " as far from the measured ones as loads were from their lines, two standard deviations either way."
        f" {lost} loads were left out, since the client was too busy. In the last turn the machine took the core away"
        f" {result['costs']['stalls_per_s']:,.0f} times per second"
        " of work.",
        table_of(rows, COLUMNS),
    )


def plan_block(folder: Path = RESULTS) -> str:
    """What docs/capacity.md shows: the plan of the stored run, as the command prints it, and the costs behind it."""
    path = folder / "capacity.json"
    if not path.exists():
        return "Nothing is stored yet: `python -m fathom.benchmarks run capacity BUNDLE`, then `make results`."
    result = load_run(path)["result"]
    costs = result["costs"]
    header, *rows = cost_rows([CellCost.model_validate(each) for each in costs["cells"]], costs["count_us"])
    return paragraphs(table(["", "what it takes"], result["plan"]), f"{COSTS_TITLE}:", table(header, rows))


BENCHMARK = Benchmark(
    __doc__,
    "5 min, two cores",
    {"bundle": Path, "--seconds": LOAD_S, "--turns": TURNS, "--calibration": CALIBRATION_S},
    measure,
    of_runs(render, "capacity"),
)
