"""The sections of docs/results.md about routing and its certificate, from the stored runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments import certificate, routing
from fathom.benchmarks.markdown import decimal, table

Run = Mapping[str, Any]


def routing_sections(folder: Path) -> list[str]:
    """All of it; a part that was not measured is left out."""
    parts = [routing.section(routing.load_routed(folder))]
    parts += [certificate.section(run)] if (run := _stored(folder, "certificate")) else []
    paths = sorted((folder / "routing_server").glob("*.json"), reverse=True)
    parts += [_server([json.loads(path.read_bytes()) for path in paths])] if paths else []
    parts += [_feedback(run)] if (run := _stored(folder, "feedback")) else []
    return [part for part in parts if part]


def _server(runs: Sequence[Run]) -> str:
    """The largest eps first."""
    parts = [
        "### Through the server",
        "CPU time of the server's process per request, gRPC included, against a server that answers everything at the"
        " deepest depth; alternating rounds over the same requests.",
    ]
    for run in runs:
        config, compute, load = run["config"], run["result"]["compute"], run["result"]["load"]
        parts += [
            f"{config['bundle']}, certified at eps {config['eps']:.0%}: {config['routing']}.",
            table(
                ["concurrency", "CPU ms, deepest", "CPU ms, certified", "saved", "NDCG@10, deepest", "certified"],
                [_saved(row) for row in compute],
            ),
            f"Poisson arrivals at {load['offered_per_s']:,.0f} requests/s, twice what the deepest depth answers"
            f" ({load['capacity_per_s']:,.0f}/s), each wanted within {config['deadline_ms']:.0f} ms:",
            table(
                ["server", "in time", "answered", "NDCG@10 of those in time", "of all requests", "depths"],
                [_loaded(name, arm) for name, arm in load["arms"].items()],
            ),
        ]
    return "\n\n".join(parts)


def _saved(row: Run) -> list[str]:
    return [
        str(row["concurrency"]),
        *(f"{row['cpu_ms'][name]:.2f}" for name in ("deepest", "certified")),
        "{:.1%} [{:.1%}, {:.1%}]".format(*(row["saved"][key] for key in ("value", "low", "high"))),
        *(decimal(row["ndcg"][name]) for name in ("deepest", "certified")),
    ]


def _loaded(name: str, arm: Run) -> list[str]:
    return [
        name,
        *(f"{arm[key]:.1%}" for key in ("in_time", "answered")),
        *(decimal(arm[key] or 0.0) for key in ("ndcg_in_time", "ndcg_of_all")),
        ", ".join(f"{depth}: {share:.0%}" for depth, share in arm["depths"].items()),
    ]


def _feedback(run: Run) -> str:
    config, result = run["config"], run["result"]
    rows = []
    for name in ("no drift", "drift"):
        row = result[name]
        values = row["median_values_until_alarm"]
        shares = [f"{row['mean_agreement']:.3f}", f"{row['alarms']} of {row['replications']}"]
        rows.append([name, *shares, "" if values is None else f"{values:,.0f}"])
    about = (
        f"{config['bundle']}: {config['routing']}. Values as the server's feedback sees them, {config['values']:,} in a"
        f" stream, until the e-process passes 1/{config['alpha']}; expected: at least {result['expected']:.3f}. Drift:"
        " the popularity of all items shuffled."
    )
    head = ["stream", "mean agreement", "alarms", "values until the alarm, median"]
    return "\n\n".join(["### Does feedback notice drift?", about, table(head, rows)])


def _stored(folder: Path, name: str) -> Run | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else None
