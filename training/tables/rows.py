"""One batch of raw rows -> typed events; every row that cannot be used is counted, with its reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from fathom.errors import DataError
from fathom.training.tables.context import PREFIX
from fathom.training.tables.ids import identifiers
from fathom.training.tables.readers import shorten
from fathom.training.tables.times import Times
from fathom.training.tables.types import EventTypes

MALFORMED_LIMIT = 0.01
_ADVICE = {  # beginning of a reason -> what helps
    "unreadable timestamp": "give --timestamp-format or --timestamp-unit",
    "not utf-8": "give the --encoding, such as latin-1",
    "not UTF-8": "give the --encoding, such as latin-1",
    "invalid JSON": "one object per line is wanted, or one array",
    "not a JSON object": "one object per line is wanted, or one array",
    "NaN or Infinity": "write null",
}


@dataclass
class RowReport:
    """What became of a file's rows: read, malformed by reason, filtered by reason.

    tolerated: the share of malformed rows above which the file is refused; types: of the events, where they are read.
    """

    path: Path
    tolerated: float = MALFORMED_LIMIT
    rows: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    first: dict[str, Any] | None = None
    types: EventTypes | None = None

    def check(self) -> None:
        """Raise DataError when more rows are malformed than tolerated, or there was no row at all."""
        if self.rows == 0:
            raise DataError(f"{self.path}: no rows")
        bad = self.malformed.total()
        if self.first is not None and bad > self.tolerated * self.rows:
            reason = self.first["reason"]
            advice = next((text for start, text in _ADVICE.items() if reason.startswith(start)), None)
            raise DataError(
                f"{self.path}: {bad:,} of {self.rows:,} rows are malformed ({bad / self.rows:.1%}, more than"
                f" {self.tolerated:.0%}); first: line {self.first['row']}: {reason}:"
                f" {self.first['content'][:40]}; {advice or 'mend them'}, or raise --max-malformed"
            )

    def count_malformed(self, judged: pl.DataFrame, shown: tuple[str, ...]) -> None:
        """Count the rows whose column _reason is not null; keep the first to show (its ``shown`` columns)."""
        bad = judged.filter(pl.col("_reason").is_not_null())
        for reason, count in bad["_reason"].value_counts().iter_rows():
            self.malformed[reason] += count
        if self.first is None and not bad.is_empty():
            row = bad.row(0, named=True)
            named = sorted(shown, key=lambda name: name not in row["_reason"])  # messages have room for little
            fields = " ".join(f"{name}={str(row[name])!r}" for name in named if name in row)
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
    times: Times,
    *,
    drops: Mapping[str, pl.Expr] | None = None,
    minimum_rating: float | None = None,
) -> pl.DataFrame:
    """The usable rows of a batch of `readers.read`.

    Returns user str, item str, and where the batch has them order i64 (microseconds, or the position), nanos i16
    (on top of the microseconds), weight f32, title, categories and context:FEATURE (str, null where unknown); rows are
    counted in ``report``. Rows under ``drops`` (reason -> condition), below ``minimum_rating`` and of weight 0 count as
    filtered, not as malformed.

    Raises DataError when a column's type cannot stand for what it should be, or times leave open what they mean.
    """
    try:
        return _clean(batch, report, times, drops or {}, minimum_rating)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{report.path}: a column has an unusable type ({shorten(str(error))})") from None


def _clean(
    batch: pl.DataFrame, report: RowReport, times: Times, drops: Mapping[str, pl.Expr], minimum_rating: float | None
) -> pl.DataFrame:
    report.rows += batch.height
    for reason, expression in drops.items():
        batch = _drop(batch, reason, expression & pl.col("problem").is_null(), report)
    checks: list[pl.Expr] = [pl.col("problem")]
    typed: dict[str, pl.Expr | pl.Series] = {name: identifiers(batch[name], report.path) for name in ("user", "item")}
    for name, value in typed.items():
        checks.append(pl.when(pl.lit(value).is_null()).then(pl.lit(f"missing {name}")))
    context = [name for name in batch.columns if name.startswith(PREFIX)]
    typed |= {name: identifiers(batch[name], report.path) for name in context}
    if "rating" in batch.columns:
        rating = _text(batch, "rating").cast(pl.Float64, strict=False)
        typed["_rating"] = rating
        checks.append(_rating_problem(rating))
    if report.types is not None:
        typed["_type"] = types = identifiers(batch["type"], report.path)
        checks.append(pl.when(pl.lit(types).is_null()).then(pl.lit("missing type")))
    if "timestamp" in batch.columns:
        moments = times.read(batch["timestamp"])
        typed |= {"order": moments["micros"], "nanos": moments["nanos"]}
        checks.append(pl.lit(moments["problem"]))
    elif "position" in batch.columns:
        position = _position(batch)
        typed["order"] = position
        checks.append(pl.when(position.is_null()).then(pl.lit("position is not a whole number")))
    judged = batch.with_columns(pl.coalesce(checks).alias("_reason"), **{f"_{n}": v for n, v in typed.items()})
    report.count_malformed(judged, ("user", "item", "rating", "type", "timestamp", "position"))
    good = judged.filter(pl.col("_reason").is_null()).with_columns(pl.col(f"_{name}").alias(name) for name in typed)
    if minimum_rating is not None:
        good = _drop(good, f"rating below {minimum_rating:g}", pl.col("_rating") < minimum_rating, report)
    if report.types is not None:
        good = _weighted(good, report.types, report)
    names = ("user", "item", "order", "nanos", "weight", "title", "categories", *context)
    return good.select(name for name in names if name in good.columns)


def _weighted(good: pl.DataFrame, types: EventTypes, report: RowReport) -> pl.DataFrame:
    """With what each event weighs; those of weight 0 are left out."""
    good = good.with_columns(types.weigh(good["_type"]).alias("weight"))
    for name in [name for name, weight in (types.weights or {}).items() if weight == 0]:
        good = _drop(good, f"of type {name!r}, which weighs 0", pl.col("_type") == name, report)
    return good


def _drop(batch: pl.DataFrame, reason: str, expression: pl.Expr, report: RowReport) -> pl.DataFrame:
    kept = batch.filter(~expression.fill_null(False))
    report.filtered[reason] += batch.height - kept.height
    return kept


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


def _position(batch: pl.DataFrame) -> pl.Expr:
    """Whole numbers, also where a program has written them as 1.0."""
    text = _text(batch, "position")
    real = text.cast(pl.Float64, strict=False)
    whole = pl.when(real == real.floor()).then(real.cast(pl.Int64, strict=False))
    return whole if batch.schema["position"].is_float() else pl.coalesce(text.cast(pl.Int64, strict=False), whole)
