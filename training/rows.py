"""One batch of raw rows -> typed events; every row that cannot be used is counted, with its reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from fathom.errors import DataError
from fathom.training.readers import shorten

MALFORMED_LIMIT = 0.01
LATEST_S = 253_402_300_799  # the end of the year 9999; larger values are another unit or damage
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
_TIME_FORMATS = (  # ISO, and what UCI's Online Retail II has as csv
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d",
    "%m/%d/%Y %H:%M",
    "%m/%d/%y %H:%M",
)


@dataclass
class RowReport:
    """What became of a file's rows: read, malformed by reason, filtered by reason."""

    path: Path
    rows: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    first: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise DataError when more than 1 % of the rows are malformed, or there was no row at all."""
        if self.rows == 0:
            raise DataError(f"{self.path}: no rows")
        bad = self.malformed.total()
        if self.first is not None and bad > MALFORMED_LIMIT * self.rows:
            raise DataError(
                f"{self.path}: {bad:,} of {self.rows:,} rows are malformed ({bad / self.rows:.1%}, more than"
                f" {MALFORMED_LIMIT:.0%}); first: line {self.first['row']}: {self.first['reason']}:"
                f" {self.first['content']}"
            )

    def count_malformed(self, judged: pl.DataFrame, shown: tuple[str, ...]) -> None:
        """Count the rows whose column _reason is not null; keep the first to show (its ``shown`` columns)."""
        bad = judged.filter(pl.col("_reason").is_not_null())
        for reason, count in bad["_reason"].value_counts().iter_rows():
            self.malformed[reason] += count
        if self.first is None and not bad.is_empty():
            row = bad.row(0, named=True)
            fields = " ".join(f"{name}={row[name]!r}" for name in shown if name in row)
            content = fields if row["content"] is None else row["content"]
            self.first = {"row": row["row"], "reason": row["_reason"], "content": shorten(content)}

    def as_dict(self) -> dict[str, Any]:
        """For meta.json."""
        return {
            "rows": self.rows,
            "malformed": {"rows": self.malformed.total(), **dict(sorted(self.malformed.items()))},
            "first_malformed": self.first,
            "filtered": dict(sorted(self.filtered.items())),
        }


def clean(
    batch: pl.DataFrame,
    report: RowReport,
    *,
    timestamp_unit: str = "s",
    drops: Mapping[str, pl.Expr] | None = None,
    minimum_rating: float | None = None,
) -> pl.DataFrame:
    """The usable rows of a batch of `readers.read`.

    Returns user str, item str, and where the batch has them order i64 (microseconds, or the position),
    title and categories; rows are counted in ``report``. Rows under ``drops`` (reason -> condition) and below
    ``minimum_rating`` count as filtered, not as malformed.

    Raises DataError when a column's type cannot stand for what it should be.
    """
    try:
        return _clean(batch, report, _PER_SECOND[timestamp_unit], drops or {}, minimum_rating)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{report.path}: a column has an unusable type ({shorten(str(error))})") from None


def _clean(
    batch: pl.DataFrame,
    report: RowReport,
    per_second: int,
    drops: Mapping[str, pl.Expr],
    minimum_rating: float | None,
) -> pl.DataFrame:
    report.rows += batch.height
    for reason, expression in drops.items():
        batch = _drop(batch, reason, expression & pl.col("problem").is_null(), report)
    checks: list[pl.Expr] = [pl.col("problem")]
    typed = {"user": _identifier(batch, "user"), "item": _identifier(batch, "item")}
    for name, value in typed.items():
        checks.append(pl.when(value.fill_null("") == "").then(pl.lit(f"missing {name}")))
    if "rating" in batch.columns:
        typed["_rating"] = _text(batch, "rating").cast(pl.Float64, strict=False)
        checks.append(_rating_problem(typed["_rating"]))
    if "timestamp" in batch.columns:
        order, problem = _time(batch, per_second)
        typed["order"] = order
        checks.append(problem)
    elif "position" in batch.columns:
        typed["order"] = pl.col("position").cast(pl.Int64, strict=False)
        checks.append(pl.when(typed["order"].is_null()).then(pl.lit("position is not a whole number")))
    judged = batch.with_columns(pl.coalesce(checks).alias("_reason"))
    report.count_malformed(judged, ("user", "item", "rating", "timestamp", "position"))
    good = judged.filter(pl.col("_reason").is_null()).with_columns(**typed)
    if minimum_rating is not None:
        good = _drop(good, f"rating below {minimum_rating:g}", pl.col("_rating") < minimum_rating, report)
    return good.select(n for n in ("user", "item", "order", "title", "categories") if n in good.columns)


def _drop(batch: pl.DataFrame, reason: str, expression: pl.Expr, report: RowReport) -> pl.DataFrame:
    kept = batch.filter(~expression.fill_null(False))
    report.filtered[reason] += batch.height - kept.height
    return kept


def _identifier(batch: pl.DataFrame, name: str) -> pl.Expr:
    """Ids are text; a float column of whole numbers (a nullable integer column that met pandas) loses its ".0"."""
    text = _text(batch, name).cast(pl.String)
    return text.str.replace(r"\.0$", "") if batch.schema[name].is_float() else text


def _text(batch: pl.DataFrame, name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars() if batch.schema[name] == pl.String else pl.col(name)


def _rating_problem(rating: pl.Expr) -> pl.Expr:
    missing = pl.col("rating").cast(pl.String).fill_null("").str.strip_chars() == ""
    return (
        pl.when(missing)
        .then(pl.lit("missing rating"))
        .when(~rating.is_finite().fill_null(False))
        .then(pl.lit("rating is not a finite number"))
    )


def _time(batch: pl.DataFrame, per_second: int) -> tuple[pl.Expr, pl.Expr]:
    """Microseconds since 1970, and the problem of those that have none."""
    raw, dtype = pl.col("timestamp"), batch.schema["timestamp"]
    missing = raw.is_null()
    if dtype in (pl.Datetime, pl.Date):
        micros = raw.dt.epoch("us")
    elif dtype == pl.String:
        micros = _parsed_micros(batch, per_second)
        missing = raw.fill_null("").str.strip_chars() == ""
    else:
        micros = _micros(raw if dtype.is_float() else raw.cast(pl.Int64, strict=False), per_second)
    problem = (
        pl.when(missing)
        .then(pl.lit("missing timestamp"))
        .when(micros.is_null())
        .then(pl.lit("unreadable timestamp, or beyond the year 9999 (is its unit right?)"))
        .when(micros < 0)
        .then(pl.lit("negative timestamp"))
    )
    return micros, problem


def _parsed_micros(batch: pl.DataFrame, per_second: int) -> pl.Expr:
    text = pl.col("timestamp").str.strip_chars()
    numbers = (text.cast(pl.Int64, strict=False), text.cast(pl.Float64, strict=False))
    micros = pl.coalesce(_micros(number, per_second) for number in numbers)
    if not batch.select(micros.is_null().any()).item():
        return micros  # the usual case; trying the date formats costs more than all else here
    date = text.str.strip_suffix("Z")
    parsed = (date.str.to_datetime(form, time_unit="us", strict=False) for form in _TIME_FORMATS)
    return pl.coalesce(micros, *(moment.dt.epoch("us") for moment in parsed))


def _micros(number: pl.Expr, per_second: int) -> pl.Expr:
    # -1 stands for every negative time: it is malformed anyway, and must not overflow.
    usable = pl.when(number < 0).then(-1).when(number <= LATEST_S * per_second).then(number)
    return (usable * (1_000_000 // per_second)).cast(pl.Int64, strict=False)
