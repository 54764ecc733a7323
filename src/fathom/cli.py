"""The command line: `fathom COMMAND --help` shows an example of each."""

import sys
from functools import cache
from typing import Annotated, NoReturn

import typer

from fathom.errors import FathomError, MissingExtraError

HELP = """Fathom: recommendations at the depth that the request, the device and the deadline ask for.

Settings: command line > environment (FATHOM_*) > file > default.
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        from fathom.distribution import version

        print(f"fathom {version()}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def _program() -> typer.Typer:
    """With `fathom serve` alone: a server keeps what it has imported, and the other commands are 4 MB."""
    from fathom.commands import serve

    app = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
    )
    app.callback(help=HELP)(_options)
    app.command(cls=serve.ServeCommand)(serve.serve)
    return app


@cache
def _whole_program() -> typer.Typer:
    from fathom.commands import (
        build,
        bundle,
        capacity,
        client,
        compress,
        console,
        data,
        device,
        experiments,
        export,
        items,
        key,
        layers,
        plan,
        rank,
        runs,
        score,
        train,
    )

    app = _program()
    for group, name in (
        (data.data_app, "data"),
        (bundle.app, "bundle"),
        (device.app, "profiles"),
        (data.history_app, "history"),
        (items.app, "items"),
        (experiments.app, "experiments"),
        (runs.runs_app, "runs"),
    ):
        app.add_typer(group, name=name)
    for command in (
        *(train.train, train.evaluate, layers.layers, rank.rank, rank.stability, compress.compress),
        *(plan.plan, train.heal),
        *(export.export, export.certify),
        *(build.build, score.score, runs.leaderboard),
        *(key.key, client.reload, client.recommend, client.demo, client.loadtest),
        *(console.console, capacity.capacity, device.doctor),
    ):
        app.command()(command)
    return app


def __getattr__(name: str) -> typer.Typer:
    if name == "app":
        return _whole_program()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run one command; every mistake a user can make ends in one line on stderr and exit code 2."""
    app = _program() if sys.argv[1:2] == ["serve"] else _whole_program()
    try:
        app()
    except FathomError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        from fathom.distribution import EXTRA_OF

        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise
        _fail(MissingExtraError(module, EXTRA_OF[module]))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: FathomError) -> NoReturn:
    from rich.markup import escape

    from fathom.show import err

    err.print("[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
    sys.exit(2)
