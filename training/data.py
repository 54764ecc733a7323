"""From raw interactions to a dataset folder: read, check, filter, order, number, write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.artefacts import DATASET, check_output
from fathom.errors import ConfigError, DataError
from fathom.files import new_folder, sha256_file, write_json
from fathom.training.catalogue import SCHEMA, described, first_known, item_table
from fathom.training.dataset import INTERACTIONS, ITEMS, META, SCHEMA_VERSION, USERS, Dataset, Progress
from fathom.training.sources import DEFAULTS, PrepareOptions, Source, default_options, generic_source, open_source
from fathom.training.tables.context import PREFIX, ContextCoder, compact, context_note
from fathom.training.tables.ids import Codes, IdCoder, without_point
from fathom.training.tables.readers import Layout, read
from fathom.training.tables.rows import RowReport, clean
from fathom.training.tables.times import Times
from fathom.training.tables.types import EventTypes

__all__ = ["DEFAULTS", "PrepareOptions", "default_options", "k_core", "prepare"]


@dataclass(frozen=True)
class Events:
    """Events as columns of equal length, sorted by user and time once ``sort`` has run.

    users, items: u32, places in user_ids and item_ids, which are text in sorted order once ``compact`` has run; until
    then they may be categorical, as they turned up. order: i64 microseconds or positions, None where the input's own
    order is all there is; nanos: i16, on top of the microseconds, None where no time has any; weights: f32, None where
    all events weigh the same. contexts: u16 (events, features), places from 1 in the values of each feature, 0 where
    it has none; None without features. context_values: feature -> its values, in the order of their texts once
    ``compact`` has run.
    """

    users: Codes
    items: Codes
    order: NDArray[np.int64] | None
    nanos: NDArray[np.int16] | None
    user_ids: pl.Series
    item_ids: pl.Series
    weights: NDArray[np.float32] | None = None
    contexts: NDArray[np.uint16] | None = None
    context_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[Any]) -> "Events":
        """The events at these places, int (n,), or under this mask, bool (events,)."""
        optional = {name: getattr(self, name) for name in ("order", "nanos", "weights", "contexts")}
        taken: dict[str, Any] = {name: None if value is None else value[which] for name, value in optional.items()}
        return replace(self, users=self.users[which], items=self.items[which], **taken)

    def sort(self) -> "Events":
        """By user, then order; ties stay in input order."""
        keys = (self.nanos, self.order, self.users)
        return self.take(np.lexsort([key for key in keys if key is not None]))

    def new(self) -> NDArray[np.bool_]:
        """Which are a user's first with their item: bool (events,)."""
        return self._pairs().is_first_distinct().to_numpy()

    def heaviest(self) -> NDArray[np.bool_]:
        """Which are the first of a user's with their item that have the largest weight: bool (events,)."""
        assert self.weights is not None
        pairs = self._pairs()
        order = np.argsort(-self.weights, kind="stable")
        first = np.zeros(len(self), dtype=np.bool_)
        first[order[pairs.gather(order).is_first_distinct().to_numpy()]] = True
        return first

    def _pairs(self) -> pl.Series:
        return pl.Series((self.users.astype(np.uint64) << np.uint64(32)) | self.items)

    def compact(self) -> "Events":
        """Without the ids and values that no event uses, all of them in the order of their texts; each user's order
        stays.
        """
        users, user_ids = _compact(self.users, self.user_ids)
        items, item_ids = _compact(self.items, self.item_ids)
        events = replace(self, users=users, items=items, user_ids=user_ids, item_ids=item_ids)
        if self.contexts is not None:
            made = [compact(*each) for each in zip(self.contexts.T, self.context_values.values(), strict=True)]
            values = dict(zip(self.context_values, (values for _, values in made), strict=True))
            events = replace(events, contexts=np.stack([codes for codes, _ in made], axis=1), context_values=values)
        return events.take(np.argsort(users, kind="stable"))


def prepare(
    source: str, out: Path, *, options: PrepareOptions | None = None, progress: Progress = lambda _: None
) -> Dataset:
    """Make a dataset folder from a source of `fathom.training.sources`, or from a csv, parquet or jsonl path.

    Events are sorted by user, then time (or position), ties in input order; users and items are numbered in
    the order of their ids. The folder appears whole or not at all.

    meta.json says what was read: which columns are used and which are not, the malformed rows by reason, and,
    under ``notes``, what was found out about the files, such as their delimiter and the unit of their times; under
    ``types``, where they are read, each event type with its weight and how many usable events it has; under
    ``context``, where there is one, each feature with its values.

    Raises DataError, in one line, for missing files and columns, for weights that do not fit the event types, for more
    malformed rows than tolerated, for item metadata that knows none of the items, and when the filters leave nothing;
    ConfigError for an unknown source.
    """
    source, options = _resolved(source, options)
    check_output(out, DATASET)
    with open_source(source, options, progress) as opened:
        events, hints, report, notes = _read_events(opened, options, progress)
        progress(f"sorting {len(events):,} events")
        events = events.sort()  # here, so that the unsorted ones go
        whole = events.item_ids.dtype == pl.String  # as `IdCoder` numbers whole numbers
        events, removed, repeats = _filter(events, options)
        if opened.items is not None:
            progress(f"reading items from {opened.items.path.name}")
        item_report = None if opened.items is None else RowReport(opened.items.path, options.max_malformed)
        items, matched = item_table(opened, events.item_ids, hints, item_report, whole=whole)
        counts = {"users": len(events.user_ids), "items": items.height, "events": len(events)}
        meta = {"schema_version": SCHEMA_VERSION, "name": options.name or _name(source, options.path), "counts": counts}
        meta |= _provenance(opened, source, options, report, removed) | {"repeats": repeats}
        if report.types is not None:
            meta["types"] = report.types.as_dict()
        if events.context_values:
            meta["context"] = {name: [*values] for name, values in events.context_values.items()}
            notes.append(context_note(events.context_values))
        meta |= {"items": None, "notes": notes}
        if opened.items is not None and item_report is not None and matched is not None:
            columns = {"columns": dict(opened.items.columns), "unused": [*opened.items_unused]}
            meta["items"] = {**item_report.as_dict(), "matched": matched, **columns}
            notes.append(_about_items(opened, item_report, matched, items.height))
    progress(f"writing {len(events):,} events of {len(events.user_ids):,} users and {items.height:,} items")
    _write(out, events, items, meta)
    return Dataset.load(out)


def _resolved(source: str, options: PrepareOptions | None) -> tuple[str, PrepareOptions]:
    """The kind of a source, which may be a path, and what is asked of it."""
    if source not in DEFAULTS and Path(source).exists():
        if options is not None and options.path is not None:
            raise ConfigError(f"path does nothing for {source}, which is a file or folder itself; leave it out")
        options = replace(options or PrepareOptions(), path=Path(source))
        source = generic_source(Path(source))
    return source, options or default_options(source)


def _provenance(
    opened: Source, kind: str, options: PrepareOptions, report: RowReport, removed: Mapping[str, int]
) -> dict[str, Any]:
    """What meta.json says of the files, and of what was left out of them."""
    filters = {name: getattr(options, name) for name in ("minimum_rating", "repeats", "k_core")}
    return {
        "has_time": "timestamp" in opened.events.columns,
        "filters": {**filters, "removed": removed},
        "source": {"kind": kind, "origin": opened.origin, "files": _files(opened)},
        "interactions": {**report.as_dict(), "columns": dict(opened.events.columns), "unused": [*opened.unused]},
    }


def _about_items(opened: Source, report: RowReport, matched: int, items: int) -> str:
    assert opened.items is not None
    known = f"{matched:,} of {items:,} items are in {opened.items.path.name}"
    bad = report.malformed.total()
    known += f", where {bad:,} of {report.rows:,} rows are malformed" if bad else ""
    return f"item data: {known}; {_columns(opened.items.columns, opened.items_unused)}"


def k_core(users: Codes, items: Codes, k: int) -> NDArray[np.bool_]:
    """Which events, bool (events,), remain when users and items with fewer than k leave, until nobody has to."""
    kept = np.ones(len(users), dtype=np.bool_)
    while True:
        user_counts = np.bincount(users[kept], minlength=int(users.max(initial=0)) + 1)
        item_counts = np.bincount(items[kept], minlength=int(items.max(initial=0)) + 1)
        smaller = kept & (user_counts[users] >= k) & (item_counts[items] >= k)
        if np.array_equal(smaller, kept):
            return kept
        kept = smaller


def _name(source: str, path: Path | None) -> str:
    """A table's own name without its endings, a folder's; a public data set is called as its source is."""
    if source not in get_args(Layout) or path is None:
        return source
    path = path.resolve()
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem or source


def _columns(used: Mapping[str, str], unused: Sequence[str]) -> str:
    taken = ", ".join(f"{role} from {column!r}" for role, column in used.items())
    return taken + (f"; not used: {', '.join(name or '(no name)' for name in unused)}" if unused else "")


def _read_events(
    source: Source, options: PrepareOptions, progress: Progress
) -> tuple[Events, pl.DataFrame, RowReport, list[str]]:
    # At 44 million rows the ids themselves would not fit.
    users, items = IdCoder(), IdCoder()
    path, columns = source.events.path, source.events.columns
    report = RowReport(path, options.max_malformed)
    if "type" in columns:
        report.types = EventTypes(path, columns["type"], dict(options.weight) if options.weight else None)
    column, unit = columns.get("timestamp", "timestamp"), source.timestamp_unit
    times = Times(path, column, unit, options.timestamp_format, source.month_first, [*source.notes])
    if options.minimum_rating is not None and "rating" not in columns:
        raise DataError(f"{path}: a minimum rating needs a rating column; this data has none")
    times.notes.append(f"columns: {_columns(columns, source.unused)}")
    if not {"timestamp", "position"} & set(columns):
        times.notes.append("order: each user's events are in the file's order, for want of a time or position column")
    contexts = {
        role: ContextCoder(path, column) for role, column in source.events.columns.items() if role.startswith(PREFIX)
    }
    frames, hints = [], pl.DataFrame(schema=SCHEMA)
    for batch in read(source.events):
        rows = clean(batch, report, times, drops=source.drops, minimum_rating=options.minimum_rating)
        if "title" in rows.columns or "categories" in rows.columns:
            hints = first_known(pl.concat([hints, described(rows.rename({"item": "id"}))]))
        codes = [users.encode(rows["user"]), items.encode(rows["item"])]
        codes += [coder.encode(rows[role]) for role, coder in contexts.items()]
        frames.append(rows.select(*codes, *({"order", "nanos", "weight"} & set(rows.columns))))
        progress(f"read {report.rows:,} rows")
    report.check()
    if report.types is not None:
        report.types.check()
        times.notes.append(report.types.note())
    table = pl.concat(frames, how="diagonal")
    if table.is_empty():
        raise DataError(f"{path}: no row is left after {_reasons(report.filtered | report.malformed)}")
    order, nanos, weights = (
        table[name].to_numpy() if name in table.columns else None for name in ("order", "nanos", "weight")
    )
    nanos = nanos if nanos is not None and nanos.any() else None
    if items.are_whole:
        hints = first_known(hints.with_columns(without_point(hints["id"])))
    (user_codes, user_ids), (item_codes, item_ids) = users.numbered(table["user"]), items.numbered(table["item"])
    events = Events(user_codes, item_codes, order, nanos, user_ids, item_ids, weights)
    if contexts:
        values = {role.removeprefix(PREFIX): coder.values for role, coder in contexts.items()}
        events = replace(events, contexts=table.select(*contexts).to_numpy(), context_values=values)
    return events, hints, report, times.notes


def repeated(events: Events, new: NDArray[np.bool_]) -> dict[str, Any]:
    """How many users' next events have an item that they had before: of the last event of each one's training part.

    events: sorted; new: bool (events,), whether the user had not had the item. The last two events of a user are left
    out: leave-one-out judges by them.
    """
    ends = np.flatnonzero(np.append(events.users[1:] != events.users[:-1], True)) + 1
    lengths = np.diff(ends, prepend=0)
    asked = ends[lengths >= 4] - 3
    again = int((~new[asked]).sum())
    return {"next_events": len(asked), "of_known_items": again}


def _filter(events: Events, options: PrepareOptions) -> tuple[Events, dict[str, int], dict[str, Any]]:
    removed = {}
    new = events.new()
    repeats = repeated(events, new)
    if options.repeats == "drop":
        first = new if events.weights is None else events.heaviest()
        removed["repeats"] = len(events) - int(first.sum())
        events = events.take(first)
    if options.k_core > 1:
        kept = k_core(events.users, events.items, options.k_core)
        removed[f"{options.k_core}-core"] = len(events) - int(kept.sum())
        events = events.take(kept)
    if len(events) == 0:
        raise DataError(f"no event is left after the filters ({_reasons(removed)}); lower --k-core")
    return events.compact(), removed, repeats


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,} rows removed" for reason, count in counts.items() if count)


def _compact(places: Codes, ids: pl.Series) -> tuple[Codes, pl.Series]:
    used = np.zeros(len(ids), dtype=np.bool_)
    used[places] = True
    written = ids.filter(pl.Series(used)).cast(pl.String)
    order = written.arg_sort()
    renumbered = np.zeros(len(ids), dtype=np.uint32)
    renumbered[np.flatnonzero(used)[order.to_numpy()]] = np.arange(len(written), dtype=np.uint32)
    return renumbered[places], written.gather(order)


def _files(source: Source) -> list[dict[str, Any]]:
    tables = [source.events] if source.items is None else [source.events, source.items]
    return [
        {"name": table.path.name, "bytes": table.path.stat().st_size, "sha256": sha256_file(table.path)}
        for table in tables
    ]


def _write(out: Path, events: Events, items: pl.DataFrame, meta: dict[str, Any]) -> None:
    columns: dict[str, NDArray[Any]] = {"user": events.users, "item": events.items}
    if meta["has_time"] and events.order is not None:
        columns["timestamp"] = events.order // 1_000_000
    if events.weights is not None and events.weights.min() < events.weights.max():
        columns["weight"] = events.weights
    for place, name in enumerate(events.context_values):
        assert events.contexts is not None
        columns[PREFIX + name] = events.contexts[:, place]
    with new_folder(out, DATASET) as folder:
        pl.DataFrame(columns).write_parquet(folder / INTERACTIONS)
        items.write_parquet(folder / ITEMS)
        pl.DataFrame({"id": events.user_ids}).write_parquet(folder / USERS)
        hashes = {name: sha256_file(folder / name) for name in (INTERACTIONS, ITEMS, USERS)}
        write_json(folder / META, {**meta, "sha256": hashes})
