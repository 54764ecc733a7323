"""`fathom serve`, whose options are the fields of ``ServerSettings``."""

import inspect
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from fathom.commands.options import AsJson

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class ServeCommand(TyperCommand):
    """Adds an option for each setting; only when its options are asked for, since pydantic is slow to load."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The bundle, the settings, and what is declared below."""
        bundle, *more = super().get_params(ctx)
        return [bundle, *_setting_options(), *more]

    def invoke(self, ctx: Any) -> Any:
        """Hand the settings that were given over as the context's object."""
        given = {option.name: ctx.params.pop(option.name) for option in _setting_options()}
        ctx.obj = {name: value for name, value in given.items() if value not in (None, [], ())}
        return super().invoke(ctx)


@cache
def _setting_options() -> list[Any]:
    from fathom.serving.config import ServerSettings

    def settings(**given: Any) -> None:
        """Carries the signature from which typer makes the options."""

    settings.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_option(name, field) for name, field in ServerSettings.model_fields.items()]
    )
    app = typer.Typer(add_completion=False)
    app.command()(settings)
    return typer.main.get_command(app).params


def _option(name: str, field: "FieldInfo") -> inspect.Parameter:
    """A flag, a text, or several; ``ServerSettings`` checks the values, wherever they come from."""
    from fathom.commands.setting_text import default_text, help_text, kind

    annotation: Any = bool if isinstance(field.default, bool) else str
    if isinstance(field.default, tuple):
        annotation = list[get_args(field.annotation)[0]]  # type: ignore[misc]
    what, _, more = kind(field).partition(" of ")
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=None if annotation is bool else f"<{'name' if more else what.partition(',')[0]}>",
        help=f"{help_text(field)}{more and f' One of {more}.'} Default: {default_text(field)}.",
    )
    typed = Annotated[annotation | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=typed)


def serve(
    context: typer.Context,
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a folder of bundles named NAME/NUMBER/.")
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C, then finish what is in flight.

    Example: fathom serve build/ml-100k/bundle --profile cloud --metrics-port 9464
    """
    # gRPC's core writes a line to stderr for whatever malformed header a client sends. It reads this once, when grpc is
    # imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from fathom.serving.config import load_settings
    from fathom.serving.process import serve as run

    settings = load_settings(context.obj, file=config)
    if as_json:
        run(settings, bundle, ready=lambda info: print(json.dumps(asdict(info)), flush=True))
    else:
        run(settings, bundle)
