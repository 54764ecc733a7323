"""Any table of interactions, with or without item metadata: its columns by option or by their usual names."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fathom.artefacts import DATASET
from fathom.errors import ConfigError, DataError
from fathom.training.tables.columns import Role, choose, context_columns, has_usual, listed
from fathom.training.tables.delimited import DELIMITERS, Dialect, sample
from fathom.training.tables.options import PrepareOptions, Source
from fathom.training.tables.readers import Layout, Table, column_names, delimiter_of, layout_of, shorten

OPTIONS: dict[Role, str] = {role: f"--{'items-id' if role == 'id' else role}-column" for role in get_args(Role)}
_TEXTS: tuple[Role, ...] = ("title", "categories")
_LOOKS_LIKE_DATA = re.compile(r"^\s*$|^[\s+-]*[\d.,:/T-]*\d[\d.,:/T-]*\s*$")


def open_table(layout: Layout, path: Path, options: PrepareOptions) -> Source:
    """A file of interactions, or a folder with ``interactions.LAYOUT``, and its item metadata.

    Raises DataError where it has no column for users or items, or two for one role.
    """
    folder = path if path.is_dir() else None
    path = folder / f"interactions.{layout}" if folder else path
    if DATASET.is_at(path.parent) and DATASET.foreign(path.parent) is None:
        raise DataError(f"{path}: part of a dataset, that needs no preparing; train on {path.parent}, or build from it")
    items_path = options.items_path or _items_beside(path)
    _refuse_unused(layout, items_path, options)
    delimiter, notes = _delimiter(path, layout, options, ("user", "item"))
    found = options.columns or column_names(path, layout, delimiter=delimiter, encoding=options.encoding)
    _check_header(path, layout, found, delimiter, options)
    wanted: dict[Role, str | None] = {"user": options.user_column, "item": options.item_column}
    if options.position_column is None:  # a position that was asked for goes before a time that was not
        wanted["timestamp"] = options.timestamp_column
    wanted |= {"position": options.position_column, "rating": options.rating_column}
    if items_path is None:
        wanted |= {r: n for r in _TEXTS if (n := getattr(options, f"{r}_column")) is not None}
    if options.weight or options.type_column is not None:
        wanted["type"] = options.type_column
    choice = choose(path, found, wanted, ("user", "item", "type"), OPTIONS)
    used = dict(choice.used)
    if "timestamp" not in used and (options.timestamp_unit or options.timestamp_format):
        raise DataError(
            f"{path}: no column of times, of which --timestamp-unit or --timestamp-format says something; it has:"
            f" {listed(found)}; name it with --timestamp-column"
        )
    unused = choice.unused
    if "timestamp" in used and "position" in used:
        unused = (*unused, used.pop("position"))
    table = Table(path, layout, used, options.columns, delimiter, options.encoding)  # type: ignore[arg-type]
    source = Source(path.name, table, timestamp_unit=options.timestamp_unit, unused=unused, notes=notes)
    return source if items_path is None else with_items(source, items_path, options)


def with_items(source: Source, path: Path, options: PrepareOptions) -> Source:
    """The source with an item table: ids by option or usual name, and any of titles and categories.

    Raises DataError for a table without ids, or without both titles and categories.
    """
    layout = layout_of(path)
    delimiter, notes = _delimiter(path, layout, options, ("id",))
    found = column_names(path, layout, delimiter=delimiter, encoding=options.encoding)
    id_column = options.items_id_column
    if id_column is None and source.events.columns["item"] in found:
        id_column = source.events.columns["item"]
    wanted: dict[Role, str | None] = {"id": id_column}
    wanted |= {"title": options.title_column, "categories": options.categories_column}
    choice = choose(path, found, wanted, ("id",), OPTIONS)
    if len(choice.used) == 1:
        raise DataError(
            f"{path}: no column for titles or categories; it has: {listed(found)}; name them with --title-column or"
            " --categories-column"
        )
    items = Table(path, layout, choice.used, (), delimiter, options.encoding)  # type: ignore[arg-type]
    return replace(source, items=items, items_unused=choice.unused, notes=(*source.notes, *notes))


def with_context(source: Source, features: Sequence[str]) -> Source:
    """The source with features of the context, from columns of the interactions that are called as they are.

    Raises DataError for a column that is not there or has another role.
    """
    if not features:
        return source
    table = source.events
    found = table.names or column_names(table.path, table.layout, delimiter=table.delimiter, encoding=table.encoding)
    chosen = context_columns(table.path, found, features, table.columns)
    unused = tuple(name for name in source.unused if name not in chosen.values())
    return replace(source, events=replace(table, columns={**table.columns, **chosen}), unused=unused)


def folder_layout(path: Path) -> Layout:
    """The layout of a folder's interactions; raises DataError where it has none."""
    if (path / "meta.json").is_file():
        raise DataError(f"{path}: a dataset already, that needs no preparing; train on it, or build from it")
    for layout in ("parquet", "csv", "jsonl", "xlsx"):
        if (path / f"interactions.{layout}").is_file():
            return layout
    raise DataError(f"{path}: no interactions.parquet, .csv, .jsonl or .xlsx in this folder")


def _items_beside(events: Path) -> Path | None:
    path = events.with_name("items.parquet")
    return path if path.is_file() and path != events else None


def _delimiter(
    path: Path, layout: Layout, options: PrepareOptions, roles: tuple[Role, ...]
) -> tuple[str, tuple[str, ...]]:
    """The delimiter of a text file, given for the interactions or found in its first lines; and what to say of it."""
    if layout != "csv":
        return ",", ()
    if options.delimiter is not None and "id" not in roles:
        return options.delimiter, ()
    given = {options.user_column, options.item_column, options.items_id_column} - {None}

    def recognised(names: list[str]) -> bool:
        return all(has_usual(names, role) for role in roles) or bool(given & set(names))

    delimiter = delimiter_of(path, options.encoding, recognised, also=options.delimiter)
    return delimiter, () if delimiter == "," else (
        f"{path.name}: fields are separated by {DELIMITERS.get(delimiter, repr(delimiter))} (--delimiter)",
    )


def _check_header(path: Path, layout: Layout, found: tuple[str, ...], delimiter: str, options: PrepareOptions) -> None:
    """A first line that is data is no header, and a header is no data."""
    if layout != "csv":
        return
    first = tuple(name.strip() for name in Dialect(delimiter).first(sample(path, options.encoding)))
    if options.columns:
        if len(first) != len(options.columns):
            raise DataError(
                f"{path}: --columns names {len(options.columns)} columns, but its first line has {len(first)}"
            )
        if has_usual(first, "user") and has_usual(first, "item"):
            raise DataError(
                f"{path}: its first line is a header ({shorten(', '.join(first))[:40]}); leave out --columns"
            )
        return
    asked = options.user_column or options.item_column
    if not (asked or has_usual(found, "user") or has_usual(found, "item")):
        shown = repr(shorten(delimiter.join(first))[:40])
        if any(_LOOKS_LIKE_DATA.match(name) for name in found):
            raise DataError(
                f"{path}: its first line is no header, but data ({shown}); name the columns, as in"
                " --columns user_id,item_id,timestamp"
            )
        if len(found) == 1:
            known = DELIMITERS.get(delimiter, repr(delimiter))
            raise DataError(f"{path}: its first line ({shown}) is not separated by {known}; give its --delimiter")
        raise DataError(
            f"{path}: its first line ({shown}) names no column for users or items; name them with --user-column and"
            " --item-column, or, if that line is data, all columns with --columns"
        )


def _refuse_unused(layout: Layout, items_path: Path | None, options: PrepareOptions) -> None:
    """An option that would do nothing is a mistake."""
    if options.columns and layout != "csv":
        raise ConfigError(f"columns does nothing for {layout}, which names its columns itself; leave it out")
    layouts = {layout, *([layout_of(items_path)] if items_path else [])}
    if options.delimiter is not None and "csv" not in layouts:
        raise ConfigError(f"delimiter does nothing for {layout}; leave it out")
    if options.encoding is not None and not layouts & {"csv", "jsonl"}:
        raise ConfigError(f"encoding does nothing for {layout}; leave it out")
    if options.items_id_column is not None and items_path is None:
        raise ConfigError("items_id_column does nothing without items_path")
