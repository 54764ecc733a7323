"""Times of every usual form -> microseconds since 1970, and nanoseconds on top; UTC where they name no zone.

numbers                     seconds, milliseconds, microseconds or nanoseconds since 1970
2023-01-31[T ]12:30[:15[.123456789]] [Z, +01:00, UTC]; 2023/01/31 and 2023.1.31 too; without a time of day
31/01/2023, 01/31/2023      where the days above 12 say which comes first
anything else               by its format, as strptime has it
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from fathom.errors import ConfigError, DataError
from fathom.training.tables.ids import without_point

TimeUnit = Literal["s", "ms", "us", "ns"]

LATEST_S = 253_402_300_799  # the end of the year 9999; larger values are another unit or damage
PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAMES: dict[TimeUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

# Times between 1990 and 2100 have numbers that no other unit has for these years; what is smaller is in seconds.
_FROM_S, _TO_S = 631_152_000, 4_102_444_800
_CUTS = [_TO_S, *(edge * PER_SECOND[unit] for unit in ("ms", "us", "ns") for edge in (_FROM_S, _TO_S))]
_UNITS: dict[int, TimeUnit] = {0: "s", 2: "ms", 4: "us", 6: "ns"}  # by the number of cuts at or below a value

_CLOCK = r"(?:[Tt ]\s*(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*([AaPp][Mm])?)?\s*"
_ZONE = r"(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$"
_CLOCK_PARTS = ("hour", "minute", "second", "fraction")
_YEAR_FIRST = rf"^(\d{{4}})[-/.](\d{{1,2}})[-/.](\d{{1,2}}){_CLOCK}{_ZONE}"
_YEAR_LAST = rf"^(\d{{1,2}})[-/.](\d{{1,2}})[-/.](\d{{4}}|\d{{2}}){_CLOCK}{_ZONE}"

UNREADABLE = "unreadable timestamp, or of another unit"


@dataclass
class Times:
    """How the times of one column are read; what is None is found out from the first rows that need it, and noted.

    unit: of numbers; format: of texts, as strptime has it; month_first: whether 01/02/2023 is in January.
    """

    path: Path
    column: str = "timestamp"
    unit: TimeUnit | None = None
    format: str | None = None
    month_first: bool | None = None
    notes: list[str] = field(default_factory=list)
    _range: tuple[int, int] | None = None  # of numbers, where the unit was guessed

    def read(self, raw: pl.Series) -> pl.DataFrame:
        """micros i64, nanos i16 (0 to 999, on top of micros), problem str: why a value is no time.

        Raises DataError where the values leave open what they mean, and for a type that cannot hold times.
        """
        if raw.dtype in (pl.Datetime, pl.Date):
            fine = raw.dtype == pl.Datetime("ns", getattr(raw.dtype, "time_zone", None))
            nanos = raw.dt.epoch("ns") % 1_000 if fine else pl.zeros(len(raw), pl.Int16, eager=True)
            return self._judged(raw.is_null(), raw.dt.epoch("us"), nanos)
        if raw.dtype in (pl.Categorical, pl.Enum) or (self.format is not None and raw.dtype.is_numeric()):
            raw = raw.cast(pl.String)
        if raw.dtype == pl.String:
            text = raw.str.strip_chars()
            return self._text(text) if self.format is None else self._formatted(text)
        if not raw.dtype.is_numeric():
            raise DataError(
                f"{self.path}: a column has an unusable type: {self.column!r} holds {raw.dtype}, which is no time;"
                " choose another with --timestamp-column"
            )
        whole = None if raw.dtype.is_float() else raw.cast(pl.Int64, strict=False)
        real = raw.cast(pl.Float64, strict=False)
        micros, nanos = self._numbers(whole, real)
        return self._judged(raw.is_null(), micros, nanos)

    def _judged(self, missing: pl.Series, micros: pl.Series, nanos: pl.Series) -> pl.DataFrame:
        value = pl.col("micros")
        problem = (
            pl.when(pl.col("missing"))
            .then(pl.lit("missing timestamp"))
            .when(value.is_null())
            .then(pl.lit(UNREADABLE))
            .when(value < 0)
            .then(pl.lit("negative timestamp"))
            .when(value > LATEST_S * 1_000_000)
            .then(pl.lit(UNREADABLE))
        )
        columns = {"missing": missing, "micros": micros, "nanos": nanos.cast(pl.Int16)}
        return pl.DataFrame(columns).with_columns(problem.alias("problem")).drop("missing")

    def _formatted(self, text: pl.Series) -> pl.DataFrame:
        assert self.format is not None
        micros = _parsed(text, self.format)
        if (short := without_point(text)) is not text:  # floats such as 20230131.0
            micros = micros.zip_with(micros.is_not_null(), _parsed(short, self.format))
        return self._judged(_blank(text), micros, pl.zeros(len(text), pl.Int16, eager=True))

    def _text(self, text: pl.Series) -> pl.DataFrame:
        whole, real = text.cast(pl.Int64, strict=False), text.cast(pl.Float64, strict=False)
        missing = _blank(text)
        micros, nanos = self._numbers(whole, real)
        rest = real.is_null() & ~missing
        if rest.any():  # taking dates apart costs more than all else here
            dates = text.zip_with(rest, pl.Series([None], dtype=pl.String).new_from_index(0, len(text)))
            for found in (_year_first(dates), self._year_last(dates)):
                if found is not None:
                    use = found["micros"].is_not_null()
                    micros, nanos = found["micros"].zip_with(use, micros), found["nanos"].zip_with(use, nanos)
        return self._judged(missing, micros, nanos)

    # numbers

    def _numbers(self, whole: pl.Series | None, real: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Microseconds and nanoseconds of numbers; null where they cannot be, -1 where they are negative."""
        real = real.set(~real.is_finite().fill_null(False), None)
        if whole is None:
            whole = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(real))
        if self.unit is None and (real >= 0).any():
            self._guess_unit(real.filter((real >= 0).fill_null(False)).to_numpy())
        per = PER_SECOND[self.unit or "s"]
        low, high = self._range or (0, min(LATEST_S * per, 2**63 - 1))
        frame = pl.DataFrame({"whole": whole, "real": real}).with_columns(
            negative=pl.col("real") < 0, usable=(pl.col("real") >= low) & (pl.col("real") <= high)
        )
        exact, scaled = pl.col("whole"), pl.col("real") * (1_000_000 / per)
        micros = exact // (per // 1_000_000) if per > 1_000_000 else exact * (1_000_000 // per)
        nanos = exact % 1_000 if per > 1_000_000 else pl.lit(0)
        inexact = exact.is_null()
        read = frame.select(
            micros=pl.when(pl.col("negative"))
            .then(-1)
            .when(pl.col("usable"))
            .then(pl.when(inexact).then(scaled.floor().cast(pl.Int64, strict=False)).otherwise(micros)),
            nanos=pl.when(pl.col("usable") & inexact)
            .then(((scaled - scaled.floor()) * 1_000).cast(pl.Int64, strict=False))
            .when(pl.col("usable"))
            .then(nanos)
            .otherwise(0)
            .cast(pl.Int16),
        )
        return read["micros"], read["nanos"]

    def _guess_unit(self, values: "np.ndarray[Any, np.dtype[np.float64]]") -> None:
        counts = np.bincount(np.searchsorted(_CUTS, values, side="right"), minlength=len(_CUTS) + 1)
        most = int(counts.argmax())
        example = _shown(values[np.searchsorted(_CUTS, values, side="right") == most][0])
        if most not in _UNITS:
            hint = " or --timestamp-format %Y%m%d%H%M%S" if len(example) == 14 else ""
            raise DataError(
                f"{self.path}: numbers such as {example} in column {self.column!r} leave open in which unit they"
                f" are; give --timestamp-unit s, ms, us or ns{hint}"
            )
        if most == 0 and _are_dates(values):
            raise DataError(
                f"{self.path}: numbers such as {example} in column {self.column!r} could be dates or seconds; give"
                " --timestamp-format %Y%m%d or --timestamp-unit s"
            )
        self.unit = _UNITS[most]
        per = PER_SECOND[self.unit]
        self._range = (0 if most == 0 else _FROM_S * per, _TO_S * per)
        self.notes.append(
            f"times: numbers in {self.column!r} are taken as {_NAMES[self.unit]} since 1970 (--timestamp-unit)"
        )

    # dates with the year last

    def _year_last(self, text: pl.Series) -> pl.DataFrame | None:
        parts = _parts(text, _YEAR_LAST, ["first", "place2", "year", *_CLOCK_PARTS, "half", "zone"])
        if parts["year"].is_null().all():
            return None
        if self.month_first is None:
            self._guess_order(parts["first"].cast(pl.Int64), parts["place2"].cast(pl.Int64), text)
        names = ("month", "day") if self.month_first else ("day", "month")
        short, year = pl.col("year").str.len_chars() == 2, pl.col("year").cast(pl.Int64)
        century = pl.when(~short).then(0).when(year < 69).then(2000).otherwise(1900)  # as strptime has it
        dates = parts.rename({"first": names[0], "place2": names[1]})
        return _moments(dates.with_columns((year + century).cast(pl.String).alias("year")))

    def _guess_order(self, first: pl.Series, second: pl.Series, text: pl.Series) -> None:
        day_first, month_first = (first > 12).any(), (second > 12).any()
        if day_first == month_first or text.str.contains(r"^\d+\D\d+\D\d\d(\D|$)").any():
            example = str(text.filter(first.is_not_null())[0])[:30]
            mark = re.sub(r"\d", "", example)[:1]
            hours = " %I:%M" if example[-1] in "Mm" else " %H:%M"
            clock = (hours if ":" in example else "") + (":%S" if example.count(":") == 2 else "")
            clock += " %p" if example[-1] in "Mm" else ""
            forms = (mark.join(form) + clock for form in (("%d", "%m", "%Y"), ("%m", "%d", "%Y")))
            raise DataError(
                f"{self.path}: dates such as {example!r} in column {self.column!r} leave open which of their numbers"
                " are days, months and years; give --timestamp-format " + " or ".join(f"{form!r}" for form in forms)
            )
        self.month_first = bool(month_first)
        taken = "month/day/year" if self.month_first else "day/month/year"
        self.notes.append(f"times: dates in {self.column!r} are taken as {taken} (--timestamp-format)")


def check_format(format: str) -> None:
    """Raise ConfigError for a format that cannot be read, or not as strptime would read it."""
    problem = None
    if "%Z" in format:
        problem = "zone names (%Z) are not read; write the name itself, such as UTC, or %z for +01:00"
    elif "%f" in format.replace(".%f", ""):
        problem = "%f must follow a point; for 3 digits write %3f, for 6 %6f"
    else:
        try:
            _parsed(pl.Series(["1"]), format)
        except pl.exceptions.PolarsError as error:
            problem = str(error).partition("\n")[0][:100]
    if problem is not None:
        raise ConfigError(f"timestamp_format {format[:40]!r} cannot be used: {problem}")


def _parsed(text: pl.Series, format: str) -> pl.Series:
    """Microseconds of texts; null where they do not have the format."""
    signs = format.replace(".%f", "%.f").replace("%z", "%#z")  # %f would be a number of nanoseconds, %z would refuse Z
    return text.str.to_datetime(signs, time_unit="us", strict=False).dt.epoch("us")


def _blank(text: pl.Series) -> pl.Series:
    return text.fill_null("") == ""


def _shown(value: float) -> str:
    return str(int(value)) if value < 2**63 else f"{value:g}"


def _are_dates(values: "np.ndarray[Any, np.dtype[np.float64]]") -> bool:
    """Whether all numbers are dates such as 20230131."""
    month, day = values // 100 % 100, values % 100
    near = (values >= 19_000_101) & (values <= 21_001_231) & (values == np.floor(values))
    return bool((near & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _year_first(text: pl.Series) -> pl.DataFrame:
    return _moments(_parts(text, _YEAR_FIRST, ["year", "month", "day", *_CLOCK_PARTS, "half", "zone"]))


def _parts(text: pl.Series, pattern: str, names: list[str]) -> pl.DataFrame:
    """The parts of the texts that match, all null for others."""
    parts = text.str.extract_groups(pattern).struct.unnest()
    parts.columns = names
    return parts


def _moments(parts: pl.DataFrame) -> pl.DataFrame:
    """micros and nanos of dates in parts (texts); null for dates and times of day that do not exist."""
    padded = (pl.col(name).str.zfill(digits) for name, digits in (("year", 4), ("month", 2), ("day", 2)))
    days = pl.format("{}-{}-{}", *padded).str.to_date("%Y-%m-%d", strict=False).dt.epoch("d").cast(pl.Int64)
    h, m, s = (pl.col(name).cast(pl.Int64).fill_null(0) for name in ("hour", "minute", "second"))
    half = pl.col("half").str.to_lowercase()
    h = pl.when(half.is_null()).then(h).when((h < 1) | (h > 12)).then(99).otherwise(h % 12 + 12 * (half == "pm"))
    nanos = (pl.col("fraction").fill_null("") + "000000000").str.slice(0, 9).cast(pl.Int64)
    digits = pl.col("zone").str.replace_all(r"\D", "").str.pad_end(4, "0")
    sign = pl.when(pl.col("zone").str.starts_with("-")).then(-1).otherwise(1)
    offset = sign * (digits.str.slice(0, 2).cast(pl.Int64) * 60 + digits.str.slice(2, 2).cast(pl.Int64))
    seconds = days * 86_400 + h * 3_600 + m * 60 + s - offset.fill_null(0) * 60
    exists = (h < 24) & (m < 60) & (s < 60)
    return parts.select(
        micros=pl.when(exists).then(seconds * 1_000_000 + nanos // 1_000),
        nanos=(nanos % 1_000).cast(pl.Int16),
    )
