"""Times of every usual form become microseconds; what may mean two things is refused with what would settle it."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError, DataError
from fathom.training.tables.times import PER_SECOND, Times, check_format

MOMENT = datetime(2023, 1, 31, 12, 30, tzinfo=UTC)
MICROS = int(MOMENT.timestamp()) * 1_000_000


def times(**options: Any) -> Times:
    return Times(Path("clicks.csv"), "ts", **options)


def micros(*texts: Any, **options: Any) -> list[int | None]:
    return times(**options).read(pl.Series(texts))["micros"].to_list()


@pytest.mark.parametrize(
    ("text", "extra_us"),
    [
        ("2023-01-31 12:30:00+00:00", 0),  # as pandas prints it
        ("2023-01-31 12:30", 0),
        ("2023-01-31T12:30Z", 0),
        ("2023-01-31t12:30:00z", 0),
        ("2023-1-31 12:30", 0),
        ("2023/01/31 12:30", 0),
        ("2023.01.31 12:30", 0),
        ("2023-01-31 12:30:00 UTC", 0),
        ("2023-01-31 13:30:00 +0100", 0),
        ("2023-01-31T07:00:00-05:30", 0),
        ("2023-01-31 13:30+01", 0),
        ("2023-01-31 12:30:00.5", 500_000),
        ("2023-01-31 12:30:00,123456789", 123_456),
        ("2023-01-31", -45_000_000_000),
        ("31.01.2023 12:30", 0),
        ("31/1/2023 12:30:00", 0),
        ("1/31/2023 12:30 PM", 0),
        ("1/31/2023 12:30:00am", -43_200_000_000),
    ],
)
def test_usual_forms_are_read_without_an_option(text: str, extra_us: int) -> None:
    assert micros(f" {text} ") == [MICROS + extra_us]


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    st.sampled_from(["auto", "minutes", "seconds", "milliseconds", "microseconds"]),
    st.sampled_from("T "),
)
def test_every_iso_text_is_the_moment_that_it_names(moment: datetime, zone: timezone, spec: str, mark: str) -> None:
    text = moment.replace(tzinfo=zone).isoformat(mark, spec)
    exact = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    found = micros(text)
    assert found == [exact // timedelta(microseconds=1)] or exact < timedelta(0)


@pytest.mark.parametrize("text", ["2023-02-30", "2023-13-01", "2023-01-01 25:00", "2023-01-01 10:61", "13:00", "x"])
def test_moments_that_do_not_exist_are_unreadable(text: str) -> None:
    frame = times().read(pl.Series([text]))
    assert frame["problem"].item().startswith("unreadable timestamp")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", ["integer", "text", "float"])
def test_the_unit_of_numbers_is_found_by_their_size_and_said(unit: str, kind: str) -> None:
    number = MICROS * PER_SECOND[unit] // 1_000_000  # type: ignore[index]
    column = times()
    frame = column.read(pl.Series([{"integer": number, "text": str(number), "float": float(number)}[kind]]))
    assert frame["micros"].to_list() == [MICROS]
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    assert column.notes == [f"times: numbers in 'ts' are taken as {names[unit]} since 1970 (--timestamp-unit)"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (50_000_000_000, "leave open in which unit they are; give --timestamp-unit s, ms, us or ns"),
        (20_230_131_123_000, "or --timestamp-format %Y%m%d%H%M%S"),
        (20_230_131.0, "could be dates or seconds; give --timestamp-format %Y%m%d or --timestamp-unit s"),
        (20_230_131, "could be dates or seconds; give --timestamp-format %Y%m%d or --timestamp-unit s"),
        ("03/04/2023", "give --timestamp-format '%d/%m/%Y' or '%m/%d/%Y'"),
        ("03.04.2023 12:30", "give --timestamp-format '%d.%m.%Y %H:%M' or '%m.%d.%Y %H:%M'"),
        ("3/4/2023 1:05:10 PM", "'%m/%d/%Y %I:%M:%S %p'"),
        ("25/10/11", "leave open which of their numbers are days, months and years"),
    ],
)
def test_what_may_mean_two_things_is_refused_with_the_option_that_settles_it(value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        micros(value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 230


def test_contradicting_dates_are_refused_and_one_day_above_twelve_settles_the_rest() -> None:
    with pytest.raises(DataError, match="leave open"):
        micros("13/01/2023", "01/13/2023")
    column = times()
    column.read(pl.Series(["13/01/2023", "02/01/2023"]))
    assert column.notes == ["times: dates in 'ts' are taken as day/month/year (--timestamp-format)"]
    assert column.read(pl.Series(["01/13/2023"]))["problem"].item().startswith("unreadable timestamp")


def test_numbers_of_another_unit_than_the_rest_are_malformed_not_misplaced() -> None:
    seconds = MICROS // 1_000_000
    frame = times().read(pl.Series([seconds * 1000, seconds * 1000, seconds]))
    assert frame["problem"].is_null().to_list() == [True, True, False]


def test_a_format_reads_what_the_forms_do_not() -> None:
    assert micros("24.03.2020", "x", format="%d.%m.%Y") == [1_585_008_000_000_000, None]
    assert micros("Jan 31, 2023 12:30", format="%b %d, %Y %H:%M") == [MICROS]
    assert micros(20_200_324, format="%Y%m%d") == [1_585_008_000_000_000]


def test_nanoseconds_count() -> None:
    numbers = times(unit="ns").read(pl.Series([MICROS * 1000 + 7]))
    text = times().read(pl.Series(["2023-01-31 12:30:00.000000007"]))
    native = times().read(pl.Series([MICROS * 1000 + 7]).cast(pl.Datetime("ns")))
    for frame in (numbers, text, native):
        assert frame.select("micros", "nanos").rows() == [(MICROS, 7)]


@pytest.mark.parametrize("value", ["20230131", "20230131.0", 20_230_131, 20_230_131.0])
def test_dates_as_numbers_are_read_by_format_however_they_are_stored(value: Any) -> None:
    assert micros(value, format="%Y%m%d") == micros("2023-01-31")


def test_times_as_categories_are_read(tmp_path: Path) -> None:
    raw = pl.Series(["2023-01-31"], dtype=pl.Categorical)
    assert Times(tmp_path).read(raw)["micros"].to_list() == micros("2023-01-31")


@settings(max_examples=25, deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))
def test_a_format_reads_fractions_and_zones_as_strptime_does(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    text = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond:06d}".rstrip("0") + "0"
    meant = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for zone in ("Z", "+00:00", "+0000"):
        assert micros(text + zone, format="%Y-%m-%d %H:%M:%S.%f%z") == [meant]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("%Y-%m-%d %H:%M:%S %Z", "zone names"),
        ("%H%M%S%f", "must follow a point"),
        ("%Y-%m-%d %H", "specify both hour and minute"),
    ],
)
def test_a_format_that_would_be_misread_is_refused(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_format(wrong)
