"""What was run before, and what came of it."""

import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson
from fathom.errors import ConfigError
from fathom.files import new_folder, write_bytes
from fathom.runs import RunRecord, Runs

runs_app = typer.Typer(no_args_is_help=True, help="What was trained, ranked, compressed and evaluated before.")

#: Metrics of which less is better.
LOWER = ("loss", "latency_ms", "weights_mb")

File = Annotated[
    Path | None, typer.Option("--file", help="The file of runs. Default: $FATHOM_RUNS, or build/runs.sqlite.")
]
Numbers = Annotated[list[int], typer.Argument(help="Numbers that fathom runs list shows.")]


@runs_app.command("list")
def list_runs(
    task: Annotated[str | None, typer.Option(help="Only runs for this task.")] = None,
    command: Annotated[str | None, typer.Option(help="Only runs of this command.")] = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Show all runs, the newest last.

    Example: fathom runs list --command compress
    """
    found = [
        run
        for run in Runs.to_read(file).all()
        if (task is None or run.task == task) and (command is None or run.command == command)
    ]
    if as_json:
        show.print_json([run.as_dict() for run in found])
        return
    if not found:
        raise ConfigError("no run is like that; fathom runs list shows all")
    rows = [["run", "when (UTC)", "command", "task", "model", "seconds", "first metric"]]
    for run in found:
        when = run.created.replace("T", " ").removesuffix("+00:00")
        first = next((f"{name} {value:.4f}" for name, value in run.metrics.items()), "")
        rows.append([str(run.number), when, run.command, run.task, run.model, f"{run.seconds:.1f}", first])
    show.table("Runs", rows)


@runs_app.command("show")
def show_run(
    number: Annotated[int, typer.Argument(help="A number that fathom runs list shows.")],
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is kept of one run.

    Example: fathom runs show 3
    """
    run = Runs.to_read(file).get(number)
    if as_json:
        show.print_json(run.as_dict())
        return
    plain = {name: value for name, value in run.as_dict().items() if name not in ("config", "metrics")}
    facts = [
        (name, shlex.join(value) if isinstance(value, list) else str(value))
        for name, value in plain.items()
        if value not in (None, "", [])
    ]
    show.facts(f"Run {number}", facts)
    show.facts("Metrics", [(name, f"{value:.4f}") for name, value in run.metrics.items()])
    show.facts("Settings", [(name, json.dumps(value)) for name, value in run.config.items()])


@runs_app.command("compare")
def compare_runs(numbers: Numbers, file: File = None, as_json: AsJson = False) -> None:
    """Show the metrics of some runs side by side, and the settings in which they differ.

    Example: fathom runs compare 3 5
    """
    kept = Runs.to_read(file)
    runs = [kept.get(number) for number in numbers]
    if as_json:
        show.print_json([run.as_dict() for run in runs])
        return
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = [["metric", *(f"run {run.number}" for run in runs)]]
    for name in names:
        values = (run.metrics.get(name) for run in runs)
        rows.append([name, *("" if value is None else f"{value:.4f}" for value in values)])
    show.table("Metrics", rows)
    settings = list(dict.fromkeys(name for run in runs for name in run.config))
    about = [("command", [run.command for run in runs]), ("model", [run.model for run in runs])]
    about += [("data", [run.data for run in runs])]
    about += [(name, [json.dumps(run.config.get(name)) for run in runs]) for name in settings]
    differing = [[name, *values] for name, values in about if len(set(values)) > 1]
    if differing:
        show.table("What differs", [["setting", *(f"run {run.number}" for run in runs)], *differing])


@runs_app.command("export")
def export_runs(
    out: Annotated[Path, typer.Option(help="File to write, .json or .csv; a CSV has a column for each metric.")],
    file: File = None,
) -> None:
    """Write all runs into one file for other programs.

    Example: fathom runs export --out runs.csv
    """
    check_outputs((out, artefacts.RUNS_EXPORT), inputs=[file])
    if out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out {out}: runs are written as .json or .csv")
    runs = Runs.to_read(file).all()
    write_bytes(out, (_as_json(runs) if out.suffix == ".json" else _as_csv(runs)).encode())
    show.out.print(f"wrote {len(runs)} runs to {out}", highlight=False)


@runs_app.command("tensorboard")
def tensorboard_runs(
    out: Annotated[Path, typer.Option(help="Folder to write; tensorboard --logdir FOLDER shows it.")],
    file: File = None,
) -> None:
    """Write all runs for TensorBoard, settings as hyperparameters. Needs the extra tensorboard.

    Example: fathom runs tensorboard --out build/board
    """
    check_outputs((out, artefacts.RUNS_BOARD), inputs=[file])
    from torch.utils.tensorboard import SummaryWriter

    runs = Runs.to_read(file).all()
    with new_folder(out, artefacts.RUNS_BOARD) as new:
        (new / artefacts.RUNS_BOARD.head).write_text(_as_json(runs))
        for run in runs:
            with SummaryWriter(str(new / f"run-{run.number}")) as writer:
                about = {f"run.{name}": getattr(run, name) for name in ("command", "task", "model", "data", "version")}
                settings = {name: _plain(value) for name, value in run.config.items()}
                writer.add_hparams({**about, **settings}, dict(run.metrics), run_name=".")
    show.out.print(f"wrote {len(runs)} runs to {out}; tensorboard --logdir {out}", highlight=False)


def _plain(value: object) -> object:
    """A setting as TensorBoard takes it."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def leaderboard(
    task: Annotated[str, typer.Option(help="Which task, as fathom runs list shows it.")],
    metric: Annotated[
        str | None, typer.Option(help="Ordered by this one. Default: the one that most runs have.")
    ] = None,
    order: Annotated[
        Literal["highest", "lowest"] | None,
        typer.Option(help="Which value comes first. Default: the lowest of a loss, a latency or a size."),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Also write it as an HTML page.")] = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Show the best runs of a task, each model and data set by its best run.

    Example: fathom leaderboard --task classification --metric accuracy --page leaderboard.html
    """
    check_outputs((page, artefacts.LEADERBOARD_PAGE), inputs=[file])
    found = [run for run in Runs.to_read(file).all() if run.task == task and run.metrics]
    if not found:
        raise ConfigError(f"no run for the task {task!r} has a metric; fathom runs list shows all")
    metric = metric or Counter(name for run in found for name in run.metrics).most_common(1)[0][0]
    sign = 1 if (order or ("lowest" if metric in LOWER else "highest")) == "lowest" else -1
    ordered = sorted((run for run in found if metric in run.metrics), key=lambda run: sign * run.metrics[metric])
    if not ordered:
        known = ", ".join(dict.fromkeys(name for run in found for name in run.metrics))
        raise ConfigError(f"no run for the task {task!r} has the metric {metric!r}; there are {known}")
    best: dict[tuple[str, str], RunRecord] = {}
    for run in ordered:
        best.setdefault((run.model, run.data), run)
    others = [name for name in dict.fromkeys(name for run in best.values() for name in run.metrics) if name != metric]
    title, head = f"Best of {task}, by {metric}", ["model", "data", metric, *others, "run"]
    rows = _board(list(best.values()), metric, others)
    if as_json:
        show.print_json([run.as_dict() for run in best.values()])
    else:
        show.table(title, [["", *head], *rows])
    if page:
        from fathom.importance.report.leaderboard import leaderboard_page

        write_bytes(page, leaderboard_page(title, head, rows).encode())


def _board(runs: Sequence[RunRecord], metric: str, others: Sequence[str]) -> list[list[str]]:
    """A row for each run: its place, model, data, metrics and number."""
    return [
        [
            str(place),
            run.model,
            run.data,
            *("" if (value := run.metrics.get(name)) is None else f"{value:.4f}" for name in (metric, *others)),
            str(run.number),
        ]
        for place, run in enumerate(runs, 1)
    ]


def _as_json(runs: Sequence[RunRecord]) -> str:
    held = {"schema_version": 1, "kind": artefacts.RUNS_EXPORT.mark, "runs": [run.as_dict() for run in runs]}
    return json.dumps(held, indent=2, ensure_ascii=False) + "\n"


def _as_csv(runs: Sequence[RunRecord]) -> str:
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    plain = ("number", "created", "command", "task", "model", "data", "seconds", "version", "commit_sha")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # The mark by which the file is known comes first.
    writer.writerow([artefacts.RUNS_EXPORT.mark, *plain, "arguments", "outputs", "config", *metrics])
    for run in runs:
        values = run.as_dict()
        joined = (shlex.join(run.arguments), shlex.join(run.outputs), json.dumps(values["config"]))
        writer.writerow(
            ["", *(values[name] for name in plain), *joined, *(run.metrics.get(name, "") for name in metrics)]
        )
    return text.getvalue()
