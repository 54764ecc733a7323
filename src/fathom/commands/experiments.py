"""Experiments: what their logs show."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom import show
from fathom.commands.options import AsJson

if TYPE_CHECKING:
    from fathom.experiments.report import ArmRow, GuardRow, Report

app = typer.Typer(no_args_is_help=True, help="Online experiments: what they show.")


@app.callback()
def _group() -> None:
    """Keeps the name of the command in the command line while there is only one."""


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
