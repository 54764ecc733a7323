"""`fathom score`: recommendations for all users, without a server."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson, BundlePath, Out, need_training
from fathom.pieces import over_processes, over_ray
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.tools.scoring.score import Summary


def score(
    bundle: BundlePath,
    users: Annotated[
        Path,
        typer.Option(
            help="Dataset folder, or a table: a row per user with lists (item_ids, timestamps), or a row per event."
        ),
    ],
    out: Out,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="Items per user.")] = 10,
    profile: Annotated[str, typer.Option(help="A profile's name or file, or a tier.")] = "cloud",
    policy: Annotated[
        Literal["auto", "certified", "rule", "deepest"], typer.Option(help="How depths are chosen, as for serve.")
    ] = "auto",
    depth: Annotated[int | None, typer.Option(min=0, help="Run exactly this depth.")] = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also items of the history.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where engines run.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with the bundle. Default: all cores; 1 with a GPU.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster to run on: its address, auto, or local to start one here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer all users as a server would, and write a parquet file; an interrupted run goes on where it stopped.

    Example: fathom score build/ml-100k/bundle --users build/ml-100k/dataset --out recs.parquet
    """
    check_outputs((out, artefacts.RECOMMENDATIONS), inputs=[bundle, users])
    need_training()
    from fathom.tools.scoring.answers import ScoreOptions
    from fathom.tools.scoring.score import score as run

    options = ScoreOptions(k, profile, policy, depth, include_seen)
    runner = over_ray(ray) if ray else over_processes(workers or _processes(device))
    with Activity(f"score {users}") as activity:
        summary = run(
            bundle, users, out, options, device=device, runner=runner, progress=activity.update, note=show.note
        )
    show.result(asdict(summary), as_json, _show, summary)


def _processes(device: str) -> int:
    """All cores, or one process for a GPU."""
    from fathom.runtime.engines.session import offers_cuda

    if device != "cpu" and offers_cuda():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show(summary: "Summary") -> None:
    unanswered = summary.users - sum(summary.depths.values())
    resumed = f", {summary.resumed_users:,} of them before" if summary.resumed_users else ""
    unknown = f"{summary.unknown_items:,} of the histories' items are not in the catalogue"
    rows = [
        ("users", f"{summary.users:,}{resumed}; {unanswered:,} without an answer"),
        ("depths", ", ".join(f"{depth}: {count:,}" for depth, count in summary.depths.items())),
        ("reasons", ", ".join(f"{reason}: {count:,}" for reason, count in summary.reasons.items())),
        ("unknown", unknown),
        ("speed", f"{summary.users_per_s:,.0f} users/s over {summary.answering_s:.1f} s"),
        ("bundle", summary.bundle_version),
    ]
    show.facts(summary.out, rows)
