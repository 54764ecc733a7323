"""Sends the items of a table to a server, part by part."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fathom.client import Client
from fathom.client.catalogue import MOST_ITEMS, CatalogueItem
from fathom.errors import DataError, brief
from fathom.training.tables.ids import identifiers

#: Columns that mean something; other columns of numbers are attributes.
LISTS = ("categories", "similar")
TEXTS = ("id", "title", *LISTS)
_TYPED = {"unavailable": pl.Boolean, "boost": pl.Float64, "expires": pl.Int64}
_READERS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class Imported:
    """What became of the items of a table; ``left_out``: columns that are neither known nor numbers."""

    items: int
    added: int
    updated: int
    catalogue_version: int
    workers_behind: int
    left_out: tuple[str, ...]


def import_items(
    client: Client, path: Path, *, bundle: str = "", progress: Callable[[str, float], None] = lambda _text, _done: None
) -> Imported:
    """Add a table's items, 1,000 at a time; what was sent before an error stays, and may be sent again.

    Raises DataError for a table that cannot be read, and what ``Client.upsert_items`` raises.
    """
    table = read_table(path)
    attributes = [name for name in table.columns if _is_attribute(table, name)]
    known = {*TEXTS, *_TYPED, *attributes}
    added = updated = version = behind = sent = 0
    for part in list(parts(_items(table, attributes), path)):
        done = client.upsert_items(part, bundle=bundle)
        added, updated = added + done.added, updated + done.updated
        version, behind = done.catalogue_version, done.workers_behind
        sent += len(part)
        progress(f"{sent:,} of {len(table):,} items", sent / len(table))
    left_out = tuple(name for name in table.columns if name not in known)
    return Imported(len(table), added, updated, version, behind, left_out)


def read_table(path: Path) -> pl.DataFrame:
    """A csv, parquet or jsonl file with a column id, every id once; raises DataError for another."""
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: its name ends in none of {', '.join(_READERS)}; convert it to one of them")
    try:
        table = _read(path, kind)
        if "id" not in table.columns:
            raise DataError(f"{path}: no column id; it has {brief(', '.join(table.columns), 120)}")
        table = table.with_columns(
            identifiers(table["id"], path),
            *(pl.col(name).cast(kind) for name, kind in _TYPED.items() if name in table.columns),
        )
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise DataError(f"{path}: it cannot be read as {kind}: {brief(' '.join(str(error).split()), 160)}") from None
    if table["id"].null_count():
        raise DataError(f"{path}: row {int(table['id'].is_null().arg_true()[0]) + 1:,} has no id; give every item one")
    if not (once := table["id"].is_unique()).all():
        raise DataError(f"{path}: id {brief(table['id'].filter(~once)[0])!r} is in it more than once; keep one row")
    return table


def parts(items: Iterable[CatalogueItem], path: Path) -> Iterator[list[CatalogueItem]]:
    """Messages of items, each after those that its items are like: a server places it among them.

    Raises DataError where items are like each other in a circle.
    """
    waiting = {item.id: item for item in items}
    while waiting:
        ready = [item for item in waiting.values() if waiting.keys().isdisjoint(item.similar)]
        if not ready:
            one = brief(next(iter(waiting)))
            raise DataError(f"{path}: {one!r} and others are like each other in a circle; leave out one's similar")
        for low in range(0, len(ready), MOST_ITEMS):
            yield ready[low : low + MOST_ITEMS]
        for item in ready:
            del waiting[item.id]


def _read(path: Path, kind: str) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(path)
    if kind == "jsonl":
        return pl.read_ndjson(path, infer_schema_length=None)
    # As text: 007 is not 7.
    return pl.read_csv(path, infer_schema_length=None, schema_overrides=dict.fromkeys(TEXTS, pl.String))


def _is_attribute(table: pl.DataFrame, name: str) -> bool:
    return name not in TEXTS and name not in _TYPED and table[name].dtype.is_numeric()


def _items(table: pl.DataFrame, attributes: list[str]) -> Iterator[CatalogueItem]:
    for row in table.iter_rows(named=True):
        numbers = {name: float(row[name]) for name in attributes if row[name] is not None}
        yield CatalogueItem(
            row["id"],
            title=row.get("title") or "",
            categories=_several(row.get("categories")),
            # What is no number is not known.
            attributes={name: value for name, value in numbers.items() if abs(value) < float("inf")},
            unavailable=bool(row.get("unavailable")),
            boost=row.get("boost") or 0.0,
            expires=row.get("expires") or 0,
            similar=_several(row.get("similar")),
        )


def _several(value: Any) -> list[str]:
    """A list as it is, a text split at each |, nothing from nothing; each once, in its order."""
    parts = value.split("|") if isinstance(value, str) else value or []
    return list(dict.fromkeys(stripped for part in parts if part is not None and (stripped := str(part).strip())))
