"""The item table of a dataset: one row per surviving item, with what is known of its title and categories."""

import ast
import json
from typing import Any

import polars as pl

from fathom.errors import DataError
from fathom.training.sources import Source
from fathom.training.tables.columns import listed
from fathom.training.tables.ids import identifiers, without_point
from fathom.training.tables.readers import Table, read, shorten
from fathom.training.tables.rows import RowReport

SCHEMA: dict[str, Any] = {"id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}
SEPARATORS = ("|", ";", ",")  # of categories in one text: the first that some item's text has


def item_table(
    source: Source, ids: pl.Series, hints: pl.DataFrame, report: RowReport | None, *, whole: bool
) -> tuple[pl.DataFrame, int | None]:
    """id str, title str?, categories list[str]? in the order of ``ids``; and how many of them the item table knows.

    Where an item has several rows, the first title and the first categories that say something win; the
    source's item table goes before ``hints`` (id, title, categories as found among the events). report: counts the
    item table's rows; whole: the ids are whole numbers, so that 1.0 in the item table is 1.

    Raises DataError for too many malformed rows, and when the item table knows none of the ids.
    """
    known, matched = [hints], None
    if source.items is not None and report is not None:
        wanted = pl.DataFrame({"id": ids})
        known, first = [], []
        for batch in read(source.items):
            rows = _described(batch, source.items, source.flags, report, whole)
            first += rows["id"].head(3).to_list()
            known.append(rows.join(wanted, on="id", how="semi", maintain_order="left"))
        report.check()
        matched = wanted.join(pl.concat(known), on="id", how="semi").height
        if matched == 0:
            theirs, ours = (listed(some[:3]) for some in (first, ids.head(3).to_list()))
            raise DataError(
                f"{report.path}: none of its ids ({theirs}) is an item of the interactions ({ours});"
                " give the items' own file with --items-path, or their ids with --items-id-column"
            )
        known.append(hints)
    table = first_known(pl.concat(known))
    return pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left"), matched


def first_known(items: pl.DataFrame) -> pl.DataFrame:
    """One row per id, in input order: its first title and its first categories that are not null."""
    return items.group_by("id", maintain_order=True).agg(
        pl.col("title").drop_nulls().first(), pl.col("categories").drop_nulls().first()
    )


def described(batch: pl.DataFrame, flags: tuple[str, ...] = ()) -> pl.DataFrame:
    """id, title and categories of a batch of item rows, with the columns that it has; its ids are text."""
    title: pl.Expr = pl.lit(None, dtype=pl.String)
    categories: pl.Expr = pl.lit(None, dtype=pl.List(pl.String))
    if "title" in batch.columns:
        text = pl.col("title").cast(pl.String).str.strip_chars()
        title = pl.when(text != "").then(text)
    if flags:
        names = [pl.when(pl.col(flag).cast(pl.String) == "1").then(pl.lit(flag)) for flag in flags]
        categories = pl.concat_list(names).list.drop_nulls()
    elif "categories" in batch.columns:
        batch, categories = batch.with_columns(_names(batch["categories"])), pl.col("categories")
    known = pl.when(categories.list.len() > 0).then(categories)
    return batch.select("id", title.alias("title"), known.alias("categories"))


def _names(raw: pl.Series) -> pl.Series:
    """Lists of category names, from lists or from text."""
    raw = raw.arr.to_list() if raw.dtype == pl.Array else raw
    if raw.dtype != pl.List:
        text = raw.cast(pl.String).str.strip_chars()
        flat = text.filter(~text.str.starts_with("[").fill_null(True))
        separator = next((mark for mark in SEPARATORS if flat.str.contains(mark, literal=True).any()), None)
        split = {one: _split(one, separator) for one in text.drop_nulls().unique()}
        return pl.Series("categories", [one and split[one] for one in text], dtype=pl.List(pl.String))
    names = raw.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
    return names.list.eval(pl.element().filter(pl.element() != "")).list.unique(maintain_order=True)


def _split(text: str, separator: str | None) -> list[str]:
    names: list[Any] = text.split(separator) if separator else [text]
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):  # a list as JSON has it, or as Python prints it
            try:
                names = parse(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                pass
    flat = [name for part in names for name in (part if isinstance(part, list) else [part])]
    named = [one.get("name", one) if isinstance(one, dict) else one for one in flat]
    return list(dict.fromkeys(name for one in named if one is not None and (name := str(one).strip())))


def _described(
    batch: pl.DataFrame, table: Table, flags: tuple[str, ...], report: RowReport, whole: bool
) -> pl.DataFrame:
    report.rows += batch.height
    for name in ("title", "categories"):
        kind = batch.schema.get(name)
        if kind == pl.Struct or getattr(kind, "inner", None) == pl.Struct:
            raise DataError(
                f"{report.path}: a column has an unusable type: {name} from {table.columns[name]!r} is"
                f" {shorten(str(kind))[:40]}, not text"
            )
    try:
        ids = identifiers(batch["id"], report.path)
        ids = without_point(ids) if whole else ids
        missing = pl.when(pl.lit(ids).is_null()).then(pl.lit("missing id"))
        judged = batch.with_columns(pl.coalesce(pl.col("problem"), missing).alias("_reason"))
        report.count_malformed(judged, ("id", "title"))
        good = judged.with_columns(pl.lit(ids).alias("id")).filter(pl.col("_reason").is_null())
        return described(good, flags)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{report.path}: a column has an unusable type ({shorten(str(error))})") from None
