"""The item table of a dataset: one row per surviving item, with what is known of its title and categories."""

from collections.abc import Callable
from typing import Any

import polars as pl

from fathom.training.readers import read
from fathom.training.rows import RowReport
from fathom.training.sources import Source

SCHEMA: dict[str, Any] = {"id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}


def item_table(
    source: Source, ids: pl.Series, hints: pl.DataFrame, progress: Callable[[str], None]
) -> tuple[pl.DataFrame, RowReport | None]:
    """id str, title str?, categories list[str]? in the order of ``ids``.

    Where an item has several rows, the first title and the first categories that say something win; the
    source's item table goes before ``hints`` (id, title, categories as found among the events).
    """
    known = [hints]
    report = None
    if source.items is not None:
        progress(f"reading items from {source.items.path.name}")
        report = RowReport(source.items.path)
        wanted = pl.DataFrame({"id": ids})
        known = [_described(batch, source, report).join(wanted, on="id", how="semi") for batch in read(source.items)]
        report.check()
        known.append(hints)
    table = first_known(pl.concat(known))
    return pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left"), report


def first_known(items: pl.DataFrame) -> pl.DataFrame:
    """One row per id, in input order: its first title and its first categories that are not null."""
    return items.group_by("id", maintain_order=True).agg(
        pl.col("title").drop_nulls().first(), pl.col("categories").drop_nulls().first()
    )


def described(batch: pl.DataFrame, separator: str, flags: tuple[str, ...] = ()) -> pl.DataFrame:
    """id, title and categories of a batch of item rows, with the columns that it has."""
    title: pl.Expr = pl.lit(None, dtype=pl.String)
    categories: pl.Expr = pl.lit(None, dtype=pl.List(pl.String))
    if "title" in batch.columns:
        text = pl.col("title").cast(pl.String).str.strip_chars()
        title = pl.when(text != "").then(text)
    if flags:
        names = [pl.when(pl.col(flag).cast(pl.String) == "1").then(pl.lit(flag)) for flag in flags]
        categories = pl.concat_list(names).list.drop_nulls()
    elif "categories" in batch.columns:
        categories = pl.col("categories")
        if batch.schema["categories"] == pl.String:
            categories = categories.str.split(separator)
        categories = categories.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
        categories = categories.list.eval(pl.element().filter(pl.element() != "")).list.unique(maintain_order=True)
    return batch.select(
        pl.col("id").cast(pl.String).str.strip_chars(),
        title.alias("title"),
        pl.when(categories.list.len() > 0).then(categories).alias("categories"),
    )


def _described(batch: pl.DataFrame, source: Source, report: RowReport) -> pl.DataFrame:
    report.rows += batch.height
    missing = pl.col("id").cast(pl.String).fill_null("").str.strip_chars() == ""
    reason = pl.coalesce(pl.col("problem"), pl.when(missing).then(pl.lit("missing id")))
    judged = batch.with_columns(reason.alias("_reason"))
    report.count_malformed(judged, ("id", "title"))
    return described(judged.filter(pl.col("_reason").is_null()), source.separator, source.flags)
