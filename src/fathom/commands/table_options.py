"""The options that say how a table is read and what of it is kept: declared once, for every command that reads one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom.errors import ConfigError

if TYPE_CHECKING:
    from fathom.training.tables.options import PrepareOptions

Unit = Literal["s", "ms", "us", "ns"]


def table_options(
    path: Annotated[Path | None, typer.Option(help="The source's file or folder; ml-100k fetches its own.")] = None,
    items_path: Annotated[Path | None, typer.Option(help="File with item metadata, if it is separate.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set. Default: the file's.")] = None,
    user_column: Annotated[str | None, typer.Option(help="Default: a usual name, such as user_id.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Default: a usual name, such as item_id.")] = None,
    timestamp_column: Annotated[str | None, typer.Option(help="Default: a usual name, such as timestamp.")] = None,
    timestamp_unit: Annotated[Unit | None, typer.Option(help="Unit of numeric times. Default: detected.")] = None,
    timestamp_format: Annotated[str | None, typer.Option(help="Format of text times, such as %d.%m.%Y.")] = None,
    position_column: Annotated[
        str | None, typer.Option(help="Column that orders a user's events, if there are no times.")
    ] = None,
    rating_column: Annotated[str | None, typer.Option(help="Default: a usual name, such as rating.")] = None,
    type_column: Annotated[
        str | None, typer.Option(help="Column of event types. Default with --weight: a usual name, such as event_type.")
    ] = None,
    items_id_column: Annotated[str | None, typer.Option(help="Id column of the item metadata.")] = None,
    title_column: Annotated[
        str | None, typer.Option(help="Title column of the item metadata or, without it, of SOURCE.")
    ] = None,
    categories_column: Annotated[str | None, typer.Option(help="Categories column; see --title-column.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names of a csv file without a header line, separated by commas.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help=r"Delimiter of csv files, such as ';' or '\t'. Default: detected.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files, such as latin-1. Default: utf-8.")] = None,
    max_malformed: Annotated[
        float | None, typer.Option(help="Accepted share of malformed rows. Default: 0.01.")
    ] = None,
    k_core: Annotated[int | None, typer.Option(help="Minimum number of events per user and per item.")] = None,
    minimum_rating: Annotated[float | None, typer.Option(help="Drop events with a lower rating.")] = None,
    repeats: Annotated[
        Literal["keep", "drop"] | None, typer.Option(help="Keep or drop a user's later events with the same item.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=WEIGHT", help="What an event of a type weighs in training; 0: left out. Repeatable."
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Columns that requests can give beside the history, such as country,device, separated by commas."
        ),
    ] = None,
) -> dict[str, Any]:
    """The options that were given, by their names in `PrepareOptions`."""
    given = {name: value for name, value in locals().items() if value not in (None, [])}
    for option, names in (("columns", columns), ("context", context)):
        if names is not None:
            given[option] = tuple(name.strip() for name in names.split(","))
    return given | {"weight": _weights(weight)} if weight else given


def _weights(given: list[str]) -> dict[str, float]:
    """Type -> weight; raises ConfigError for what is not TYPE=WEIGHT and for a type that is named twice."""
    weights: dict[str, float] = {}
    for text in given:
        name, _, number = (part.strip() for part in text.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = None
        if not name or weight is None:
            raise ConfigError(f"--weight wants TYPE=WEIGHT, such as view=0.2, not {text[:40]!r}")
        if name in weights:
            raise ConfigError(f"--weight names {name[:40]!r} twice; give it once")
        weights[name] = weight
    return weights


def prepare_options(source: str, given: dict[str, Any]) -> "PrepareOptions":
    """The source's own options with the given ones; raises ConfigError for impossible ones and unknown sources."""
    from fathom.training.sources import DEFAULTS, default_options, generic_source

    kind = source if source in DEFAULTS or not Path(source).exists() else generic_source(Path(source))
    return replace(default_options(kind), **given)
