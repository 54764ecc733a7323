"""Whatever wrote a table: its rows are kept or counted by reason, and each user's order is that of the times."""

import csv
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fathom.errors import DataError
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import Dataset
from fathom.training.tables import readers

START = 1_600_000_000
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NAMES = {"user": "userId", "item": "Item_ID", "note": "note", "time": "event_time"}


@dataclass(frozen=True)
class Event:
    """time: in the smallest steps that the written form can tell apart; None: there is none."""

    user: str | None
    item: str | None
    time: int | None
    note: str

    @property
    def good(self) -> bool:
        return self.user is not None and self.item is not None and self.time is not None


text_ids = st.text(alphabet="abü,\"'1;", min_size=1, max_size=4)
notes = st.text(alphabet="ab\",;\t|\n\r' ", max_size=8)


def events(ids: st.SearchStrategy[str]) -> st.SearchStrategy[list[Event]]:
    maybe = st.one_of(ids, ids, ids, st.none())
    times = st.one_of(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.none())
    return st.lists(st.builds(Event, maybe, maybe, times, notes), min_size=1, max_size=12)


def written_time(time: int | None, form: str) -> Any:
    if time is None:
        return None
    if form in PER_SECOND:
        return START * PER_SECOND[form] + time
    moment = datetime.fromtimestamp(START, UTC) + timedelta(microseconds=time)
    return moment if form == "datetime" else moment.isoformat(sep=" " if form == "pandas" else "T")


def rows_of(found: list[Event], form: str) -> list[dict[str, Any]]:
    return [{"user": e.user, "item": e.item, "time": written_time(e.time, form), "note": e.note} for e in found]


def expected(found: list[Event]) -> dict[str, list[str]]:
    sequences: dict[str, list[str]] = {}
    for event in sorted((e for e in found if e.good), key=lambda e: e.time or 0):
        assert event.user is not None
        assert event.item is not None
        sequences.setdefault(event.user, []).append(event.item)
    return sequences


def check(path: Path, found: list[Event], rows: int) -> None:
    """Prepare the file and compare; ``rows``: of a batch, which must not matter."""
    options = PrepareOptions(repeats="keep", max_malformed=1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BATCH_ROWS", "PARQUET_BATCH_ROWS"):
            patch.setattr(readers, name, rows)
        patch.setattr(readers, "BLOCK_BYTES", 40 * rows)
        if not any(event.good for event in found):
            with pytest.raises(DataError):
                prepare(str(path), path.parent / "out", options=options)
            return
        data = prepare(str(path), path.parent / "out", options=options)
    report = data.meta["interactions"]
    assert report["rows"] == len(found)
    assert report["malformed"]["rows"] == sum(not event.good for event in found)
    assert (
        sum(count for reason, count in report["malformed"].items() if reason != "rows") == report["malformed"]["rows"]
    )
    assert sequences(data) == expected(found)


def sequences(data: Dataset) -> dict[str, list[str]]:
    return {
        user: [data.item_ids[item] for item in items] for user, items in zip(data.user_ids, data.sequences, strict=True)
    }


orders = st.permutations(["user", "item", "time", "note"])
sizes = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(
    found=events(text_ids),
    form=st.sampled_from(["s", "ms", "us", "ns", "iso", "pandas"]),
    order=orders,
    delimiter=st.sampled_from(",\t;|"),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    rows=sizes,
)
def test_csv(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[Event],
    form: str,
    order: list[str],
    delimiter: str,
    ends: str,
    encoding: str,
    rows: int,
) -> None:
    file = io.StringIO(newline="")
    # The csv module quotes what holds its own line end only.
    quoting = csv.QUOTE_MINIMAL if ends == "\r\n" else csv.QUOTE_ALL
    writer = csv.DictWriter(file, order, delimiter=delimiter, lineterminator=ends, quoting=quoting)
    writer.writerow(NAMES)
    writer.writerows(rows_of(found, form))
    path = tmp_path_factory.mktemp("csv") / "clicks.csv"
    path.write_bytes(file.getvalue().encode(encoding))
    if encoding == "latin-1":
        path.write_bytes(file.getvalue().replace("ü", "u").encode(encoding))  # what needs no option
        found = [Event(plain(e.user), plain(e.item), e.time, e.note) for e in found]
    check(path, found, rows)


def plain(text: str | None) -> str | None:
    return text and text.replace("ü", "u")


@settings(max_examples=40, deadline=None)
@given(
    found=events(text_ids),
    form=st.sampled_from(["s", "ms", "us", "ns", "iso", "pandas"]),
    order=orders,
    keys=st.sampled_from(["null", "missing"]),
    array=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ascii=st.booleans(),
    rows=sizes,
)
def test_json(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[Event],
    form: str,
    order: list[str],
    keys: str,
    array: bool,
    encoding: str,
    ascii: bool,
    rows: int,
) -> None:
    # A key that no object has is no column.
    assume(
        keys == "null" or {name for row in rows_of(found, form) for name in row if row[name] is not None} == {*order}
    )
    objects = [
        {NAMES[name]: row[name] for name in order if row[name] is not None or keys == "null"}
        for row in rows_of(found, form)
    ]
    text = json.dumps(objects, indent=1) if array else "\n".join(json.dumps(o, ensure_ascii=ascii) for o in objects)
    path = tmp_path_factory.mktemp("json") / "clicks.jsonl"
    path.write_bytes(text.encode(encoding))
    check(path, found, rows)


@settings(max_examples=40, deadline=None)
@given(
    found=events(text_ids),
    form=st.sampled_from(["s", "ms", "us", "ns", "datetime", "iso"]),
    order=orders,
    kind=st.sampled_from([pl.String, pl.Categorical]),
    rows=sizes,
)
def test_parquet(
    tmp_path_factory: pytest.TempPathFactory, found: list[Event], form: str, order: list[str], kind: Any, rows: int
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "clicks.parquet"
    frame = pl.DataFrame(rows_of(found, form), schema_overrides={"user": pl.String, "item": pl.String}, strict=False)
    if frame.schema["time"] == pl.Null:
        frame = frame.with_columns(pl.col("time").cast(pl.Int64))
    frame.select(pl.col(name).cast(kind) if name == "user" else name for name in order).rename(NAMES).write_parquet(
        path
    )
    check(path, found, rows)


@settings(max_examples=30, deadline=None)
@given(
    found=events(st.integers(0, 12).map(lambda n: str(10**17 if n == 12 else n))),
    format=st.sampled_from(["csv", "jsonl", "parquet", "exponents"]),
)
def test_whole_numbers_are_one_id_however_a_program_writes_them(
    tmp_path_factory: pytest.TempPathFactory, found: list[Event], format: str
) -> None:
    path = tmp_path_factory.mktemp("whole") / f"clicks.{'csv' if format == 'exponents' else format}"
    frame = pl.DataFrame(rows_of(found, "s"), schema_overrides={"time": pl.Int64}).rename(NAMES).drop("note")
    ids = pl.col("userId", "Item_ID").cast(pl.Float64)
    if format == "parquet":
        frame.with_columns(ids.fill_null(float("nan"))).write_parquet(path)
    elif format == "jsonl":
        frame.with_columns(ids).write_ndjson(path)
    elif format == "csv":  # every second value with a point, as after an outer join
        text = pl.col("userId", "Item_ID")
        odd = pl.int_range(pl.len()) % 2 == 1
        frame.with_columns(pl.when(odd).then(text + ".0").otherwise(text).name.keep()).write_csv(path)
    else:
        frame.with_columns(ids).write_csv(path, float_scientific=True)
    check(path, found, 3)


LINES = [f"{n % 7},i{n % 11},{START + n},note {n}\n" for n in range(60)]
HEADER = "user_id,item_id,timestamp,note\n"


@settings(max_examples=40, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 40)), min_size=1, max_size=3), rows=sizes)
def test_stray_quotes_cost_their_own_lines_at_most(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]], rows: int
) -> None:
    lines = list(LINES)
    for line, place in places:
        place = min(place, len(lines[line]) - 1)
        lines[line] = lines[line][:place] + '"' + lines[line][place:]
    path = tmp_path_factory.mktemp("quotes") / "clicks.csv"
    path.write_text(HEADER + "".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH_ROWS", rows)
        data = prepare(str(path), path.parent / "out", options=PrepareOptions(repeats="keep", max_malformed=1))
    report = data.meta["interactions"]
    assert report["rows"] == 60
    assert report["malformed"]["rows"] <= len({line for line, _ in places})
    assert data.meta["counts"]["events"] == 60 - report["malformed"]["rows"]
