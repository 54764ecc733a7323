"""Every row is usable, malformed for a reason, or filtered for a reason; never silently gone."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import DataError
from fathom.training.tables import rows
from fathom.training.tables.rows import RowReport
from fathom.training.tables.times import LATEST_S, Times, TimeUnit


def batch(**columns: Any) -> pl.DataFrame:
    frame = pl.DataFrame({"user": "u", "item": "i"} | columns)
    return frame.with_columns(
        pl.int_range(1, frame.height + 1).alias("row"),
        pl.lit(None, dtype=pl.String).alias("problem"),
        pl.lit(None, dtype=pl.String).alias("content"),
    )


def report() -> RowReport:
    return RowReport(Path("ratings.csv"))


def clean(frame: pl.DataFrame, counts: RowReport, unit: TimeUnit | None = "s", **options: Any) -> pl.DataFrame:
    return rows.clean(frame, counts, Times(counts.path, unit=unit), **options)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user": ["", None, "  "]}, "missing user"),
        ({"item": ["", None]}, "missing item"),
        ({"rating": ["", None]}, "missing rating"),
        ({"rating": ["five", "nan", "inf", "1e999"]}, "rating is not a finite number"),
        ({"rating": [float("nan"), float("-inf")]}, "rating is not a finite number"),
        ({"timestamp": ["", None]}, "missing timestamp"),
        ({"timestamp": ["-1", "-99999999999999999999", "1960-01-01"]}, "negative timestamp"),
        ({"timestamp": [-1, -(2**62)]}, "negative timestamp"),
        ({"timestamp": [date(1969, 12, 31)]}, "negative timestamp"),
        ({"timestamp": ["soon", "nan", "inf", "1e30", str(LATEST_S + 1), "9" * 40]}, "unreadable timestamp"),
        ({"timestamp": [LATEST_S + 1, 2**62]}, "unreadable timestamp"),
        ({"timestamp": [float("nan"), 1e300]}, "unreadable timestamp"),
        ({"user": ["NaN", "nan", "NAN", "None", "null", "NULL", "<NA>", "NaT"]}, "missing user"),
        ({"item": [float("nan"), float("inf"), None]}, "missing item"),
        ({"position": ["x", "1.5", None]}, "position is not a whole number"),
    ],
)
def test_malformed_rows_are_counted_by_reason_and_left_out(columns: dict[str, Any], reason: str) -> None:
    counts = report()
    assert clean(batch(**columns), counts).is_empty()
    (found,) = counts.malformed
    assert found.startswith(reason)
    assert counts.malformed.total() == counts.rows == len(next(iter(columns.values())))


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("1260000000", "s"),
        (" 1260000000.0 ", "s"),
        ("1.26e9", "s"),
        (1_260_000_000, "s"),
        (1.26e9, "s"),
        (1_260_000_000_000, "ms"),
        ("1260000000000000", "us"),
        ("2009-12-05 08:00:00", "s"),
        ("2009-12-05T08:00:00.000Z", "s"),
        (datetime(2009, 12, 5, 8), "s"),
        (datetime(2009, 12, 5, 8, tzinfo=UTC), "s"),
    ],
)
def test_times_of_every_spelling_become_microseconds(value: Any, unit: TimeUnit) -> None:
    frame = clean(batch(timestamp=[value]), report(), unit)
    assert frame["order"].to_list() == [1_260_000_000 * 1_000_000]


def test_small_integer_types_do_not_overflow() -> None:
    times = pl.Series([2_000_000_000], dtype=pl.Int32)
    assert clean(batch(timestamp=times), report())["order"].item() == 2_000_000_000 * 1_000_000


def test_whole_number_ids_stored_as_floats_lose_their_point() -> None:
    frame = clean(batch(user=[13085.0], item=[7]), report())
    assert frame.row(0) == ("13085", "7")


def test_a_timestamp_column_of_another_type_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"ratings\.csv: a column has an unusable type"):
        clean(batch(timestamp=[[1, 2]]), report())


def test_drops_and_low_ratings_are_filtered_not_malformed() -> None:
    counts = report()
    frame = clean(
        batch(rating=["1", "3", "5", "x"], quantity=[1, -1, 2, 2]),
        counts,
        drops={"cancelled": pl.col("quantity") <= 0},
        minimum_rating=3,
    )
    assert frame.height == 1
    assert dict(counts.filtered) == {"cancelled": 1, "rating below 3": 1}
    assert counts.as_dict()["malformed"] == {"rows": 1, "rating is not a finite number": 1}


def test_one_percent_malformed_is_accepted_and_more_shows_the_first() -> None:
    good = report()
    clean(batch(user=["u"] * 99 + [""]), good)
    good.check()
    bad = report()
    clean(batch(user=["u"] * 97 + ["", "u", ""], item=[f"i{n}" for n in range(100)]), bad)
    with pytest.raises(DataError) as caught:
        bad.check()
    assert str(caught.value) == (
        "ratings.csv: 2 of 100 rows are malformed (2.0%, more than 1%); first: line 98: missing user:"
        " user='' item='i97'; mend them, or raise --max-malformed"
    )


def test_a_file_without_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        report().check()


text = st.text(max_size=8)


@given(st.lists(st.tuples(text, text, text, text), min_size=1, max_size=30))
def test_any_text_is_either_usable_or_counted(cells: list[tuple[str, str, str, str]]) -> None:
    users, items, ratings, times = (list(column) for column in zip(*cells, strict=True))
    counts = report()
    frame = clean(batch(user=users, item=items, rating=ratings, timestamp=times), counts)
    assert frame.height + counts.malformed.total() == counts.rows == len(cells)
    assert frame["order"].null_count() == 0
    assert frame.filter(pl.col("order") < 0).is_empty()


def test_names_that_only_look_like_no_value_are_ids() -> None:
    names = ["Nan", "Nat", "Null", "none", "NA"]
    assert clean(batch(user=names), report())["user"].to_list() == names


def test_the_first_malformed_row_shows_what_its_reason_is_about() -> None:
    counts = report()
    clean(batch(user=["u" * 60], item=["i" * 60], timestamp=["2023-W01-1"]), counts)
    with pytest.raises(DataError, match=r"unreadable timestamp.* timestamp='2023-W01-1'"):
        counts.check()
