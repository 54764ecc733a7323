"""What to read and what to keep, and what an opened source is."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from fathom.errors import ConfigError, brief
from fathom.training.tables.context import MOST_FEATURES
from fathom.training.tables.delimited import check_delimiter, check_encoding
from fathom.training.tables.readers import Table
from fathom.training.tables.rows import MALFORMED_LIMIT
from fathom.training.tables.times import PER_SECOND, TimeUnit, check_format

SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-6, 1_000_000  # of an event: what float32 adds up without loss
LONGEST_FEATURE_BYTES = 64


@dataclass(frozen=True)
class PrepareOptions:
    """What to read and what to keep; None means: as the source's preset says, or as the file has it.

    path: file or folder (ml-100k fetches its own when None); items_path: item metadata;
    *_column: names in the file (generic sources), where they are not usual ones; items_id_column: of the item
    metadata; timestamp_unit: of numeric times; timestamp_format: of times in text, as strptime has it;
    position_column: order within a user where there is no time; delimiter, encoding: of text files;
    columns: names of the columns of a csv file without a header line;
    max_malformed: the share of malformed rows up to which a file is read;
    k_core: fewest events of every user and item, applied until nothing changes (1 = off);
    minimum_rating: lower ratings are left out; repeats: "drop" keeps a user's first event with an item, the first
    of those with the largest weight.
    type_column, weight: the column of event types, and type -> what an event of it weighs in training, 0 for one
    that is left out. With ``weight`` the column may have a usual name; with neither, types are not read.
    context: columns of the interactions that say what a request can tell beside its history, such as country.
    Evaluation and serving leave out what a user has seen, so a repeated item can never be recommended:
    hence "drop".
    """

    path: Path | None = None
    items_path: Path | None = None
    name: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    timestamp_column: str | None = None
    position_column: str | None = None
    rating_column: str | None = None
    type_column: str | None = None
    items_id_column: str | None = None
    title_column: str | None = None
    categories_column: str | None = None
    timestamp_unit: TimeUnit | None = None
    timestamp_format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    max_malformed: float = MALFORMED_LIMIT
    k_core: int = 1
    minimum_rating: float | None = None
    repeats: Literal["keep", "drop"] = "drop"
    weight: Mapping[str, float] | None = None
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            text = "".join(value) if isinstance(value, str | tuple | Mapping) else ""
            if text.encode(errors="replace").decode() != text:
                raise ConfigError(f"{name} is not UTF-8 text; give another")
        if self.k_core < 1:
            raise ConfigError(f"k_core must be at least 1, not {self.k_core}")
        if self.minimum_rating is not None and not math.isfinite(self.minimum_rating):
            raise ConfigError(f"minimum_rating must be a finite number, not {self.minimum_rating}")
        if not 0 <= self.max_malformed <= 1:
            raise ConfigError(f"max_malformed must be a share from 0 to 1, not {self.max_malformed}")
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", check_delimiter(self.delimiter))
        if self.encoding is not None:
            object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.repeats not in ("keep", "drop"):
            raise ConfigError(f"repeats must be keep or drop, not {self.repeats!r}")
        if self.timestamp_unit is not None and self.timestamp_unit not in PER_SECOND:
            raise ConfigError(f"timestamp_unit must be s, ms, us or ns, not {self.timestamp_unit!r}")
        if self.timestamp_format is not None and "%" not in self.timestamp_format:
            raise ConfigError(f"timestamp_format needs signs such as %d.%m.%Y, unlike {self.timestamp_format[:40]!r}")
        if self.timestamp_format is not None:
            check_format(self.timestamp_format)
        if self.timestamp_format is not None and self.timestamp_unit is not None:
            raise ConfigError("timestamp_unit is for numbers, timestamp_format for text; give one of them")
        if self.timestamp_column is not None and self.position_column is not None:
            raise ConfigError("timestamp_column and position_column both order a user's events; give one of them")
        if "" in self.columns or len(set(self.columns)) < len(self.columns):
            raise ConfigError("columns must be different names with commas between them")
        _check_weights(self.weight or {})
        _check_context(self.context)


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if weight != 0 and not SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:
            span = f"{SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:,}"
            raise ConfigError(f"weight of {name[:40]!r} must be 0 (left out) or {span}, not {weight:g}")
    if weights and not any(weights.values()):
        raise ConfigError("weight leaves out every event type; give one of them a weight above 0")


def _check_context(features: tuple[str, ...]) -> None:
    if "" in features or len(set(features)) < len(features):
        raise ConfigError("context must be different names of columns with commas between them")
    if len(features) > MOST_FEATURES:
        raise ConfigError(f"context names {len(features)} columns, at most {MOST_FEATURES}")
    for name in features:
        if re.search(r"[\x00-\x1f\x7f]", name):
            raise ConfigError(f"context names a column with control characters, {brief(name)}; rename it")
        if (size := len(name.encode())) > LONGEST_FEATURE_BYTES:
            raise ConfigError(f"context names a column of {size} bytes, at most {LONGEST_FEATURE_BYTES}")


@dataclass(frozen=True)
class Source:
    """An opened source.

    origin: what the files are part of; events: table with user, item and perhaps timestamp, position, rating, type,
    title, categories, quantity, context:FEATURE; items: table with id and perhaps title, categories (a list, or text of
    several) or one 0/1 column per name in ``flags``; timestamp_unit, month_first: of the times, None where they are to
    be found out; drops: reason -> rows that the source's own rules leave out; unused: the columns of events and items
    that are not used; notes: what was found out about the files, in one line each.
    """

    origin: str
    events: Table
    items: Table | None = None
    timestamp_unit: TimeUnit | None = None
    month_first: bool | None = None
    flags: tuple[str, ...] = ()
    drops: Mapping[str, pl.Expr] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    items_unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
