"""`fathom experiments`: start, stop and promote them on a server, and report what their logs show."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom import show
from fathom.commands.connection_options import connect
from fathom.commands.options import AsJson, takes
from fathom.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fathom.client import ExperimentInfo
    from fathom.client.experiments import Action
    from fathom.experiments.report import ArmRow, GuardRow, Report

app = typer.Typer(no_args_is_help=True, help="Online experiments: start, stop and promote them, see what they show.")

Name = Annotated[str, typer.Argument(help="Experiment of the server's file.")]


@app.command("status")
@takes(connection=connect)
def status(*, connection: Connection, as_json: AsJson = False) -> None:
    """Show how the experiments of a running server stand.

    Example: fathom experiments status --target 127.0.0.1:50051
    """
    from fathom.client import Client

    with Client.over(connection) as client:
        found = client.experiments()
    show.result([asdict(each) for each in found], as_json, _show_all, found)


@app.command("start")
@takes(connection=connect)
def start(*, name: Name, connection: Connection, as_json: AsJson = False) -> None:
    """Start an experiment of the server's file: from now on units get its arms.

    Example: fathom experiments start shallower
    """
    _change(connection, name, "start", "", as_json=as_json)


@app.command("stop")
@takes(connection=connect)
def stop(*, name: Name, connection: Connection, as_json: AsJson = False) -> None:
    """Stop an experiment: everybody is answered as without it.

    Example: fathom experiments stop shallower
    """
    _change(connection, name, "stop", "", as_json=as_json)


@app.command("promote")
@takes(connection=connect)
def promote(
    *,
    name: Name,
    arm: Annotated[str, typer.Argument(help="Arm that everybody gets from now on.")],
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """End an experiment and give everybody one of its arms, until it is stopped.

    Example: fathom experiments promote shallower depth-4
    """
    _change(connection, name, "promote", arm, as_json=as_json)


def _change(connection: Connection, name: str, action: "Action", arm: str, *, as_json: bool) -> None:
    from fathom.client import Client

    with Client.over(connection) as client:
        found = client.change_experiment(name, action, arm=arm)
    show.result(asdict(found), as_json, _show_all, [found])


def _show_all(found: "Sequence[ExperimentInfo]") -> None:
    head = ["experiment", "phase", "arm", "share", "answers", "failed"]
    rows = []
    for each in found:
        named = [each.name, _phase(each)]
        for arm, info in each.arms.items():
            rows.append([*named, arm, f"{info.share:.1%}", f"{info.requests:,}", f"{info.failed:,}"])
            named = ["", ""]
    show.table("Experiments", [head, *rows])
    notes = [(each.name, each.reason) for each in found if each.reason]
    notes += [(each.name, f"canary: {each.canary}") for each in found if each.canary]
    if notes:
        show.facts("", notes)


def _phase(each: "ExperimentInfo") -> str:
    return f"{each.phase} ({each.arm})" if each.arm else each.phase


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Log of one experiment.")],
    as_json: AsJson = False,
) -> None:
    """Show what an experiment's log says so far; looking often costs nothing. Needs the extra train.

    Example: fathom experiments report logs/shallower
    """
    from fathom.experiments.exposures import read_log
    from fathom.experiments.report import report_of

    found = report_of(read_log(folder))
    show.result(asdict(found), as_json, _show, found)


def _show(found: "Report") -> None:
    from fathom.experiments.mismatch import ALARM

    title = f"{found.name}: {found.metric}, {100 * found.confidence:.4g} % confidence at every look"
    head = ["arm", f"{found.unit}s", "requests", "share", "mean", "uplift", "interval", "p"]
    show.table(title, [head, *(_cells(row) for row in found.arms)])
    guards = [_guard_cells(row, guard) for row in found.arms for guard in row.guards]
    if guards:
        show.table("Guard rails", [["guard", "mean", "control", "worse by", "allowed", "state"], *guards])
    state = "ALARM, not as the shares say" if found.mismatch_p < ALARM else "as the shares say"
    facts = [("days", f"{found.days:.1f}"), ("arms' sizes", f"{state} (p {found.mismatch_p:.3g})")]
    if removed := max((row.variance_removed or 0.0 for row in found.arms), default=0.0):
        facts.append(("covariate", f"explains {removed:.0%} of the variance; uplifts are adjusted for it"))
    if found.waiting:
        facts.append(("waiting", f"{found.waiting:,} {found.unit}s whose window has not passed"))
    if found.moved:
        facts.append(("moved", f"{found.moved:,} {found.unit}s seen in several arms; each counts for its first"))
    if found.unmatched:
        facts.append(("unmatched", f"{found.unmatched:,} outcomes of requests that are not in the log"))
    show.facts("", [*facts, ("verdict", found.verdict)])


def _cells(row: "ArmRow") -> list[str]:
    interval = "" if row.p_value is None else "not yet"
    if row.uplift_low is not None:
        interval = f"[{_percent(row.uplift_low)}, {_percent(row.uplift_high)}]"
    p_value = "" if row.p_value is None else f"{row.p_value:.3g}"
    counts = [f"{row.users:,}", f"{row.requests:,}", f"{row.share:.1%}"]
    return [row.name, *counts, _number(row.mean), _percent(row.uplift), interval, p_value]


def _guard_cells(row: "ArmRow", guard: "GuardRow") -> list[str]:
    numbers = [_number(guard.mean), _number(guard.control), _percent(guard.worse), f"{guard.margin:.1%}"]
    return [f"{row.name}: {guard.name}", *numbers, guard.state]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.2%}"
