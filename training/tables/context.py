"""Features of the context of an event, such as country or device: what a request tells beside its history."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.errors import DataError
from fathom.training.tables.ids import are_whole, without_point

#: Before the name of a feature, where it names a column.
PREFIX = "context:"
MOST_FEATURES, MOST_VALUES, LONGEST_VALUE_BYTES = 8, 10_000, 128

#: Of each event the place of its value, from 1; 0 where it has none.
Codes = NDArray[np.uint16]


class ContextCoder:
    """Numbers the values of one feature as they turn up, batch by batch."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._codes: dict[str, int] = {}

    def encode(self, values: pl.Series) -> pl.Series:
        """Text (n,), null where there is none, as codes, u16 (n,).

        Raises DataError for a value that is too long, and for more values than a feature can have.
        """
        for value in values.drop_nulls().unique(maintain_order=True):
            if value not in self._codes:
                self._codes[value] = len(self._codes) + 1
                if (size := len(value.encode())) > LONGEST_VALUE_BYTES:
                    raise DataError(
                        f"{self._path}: column {self._column!r} has a value of {size:,} bytes, at most"
                        f" {LONGEST_VALUE_BYTES} in a feature of the context; choose another column with --context"
                    )
        if len(self._codes) > MOST_VALUES:
            raise DataError(
                f"{self._path}: column {self._column!r} has more than {MOST_VALUES:,} different values, too many for a"
                " feature of the context; choose another column with --context"
            )
        known = list(self._codes)
        return values.replace_strict(known, range(1, len(known) + 1), default=0, return_dtype=pl.UInt16).fill_null(0)

    @property
    def values(self) -> tuple[str, ...]:
        """The values by their codes, from 1."""
        return tuple(self._codes)


def compact(codes: Codes, values: Sequence[str]) -> tuple[Codes, tuple[str, ...]]:
    """Codes (n,) of the values that some event has, ordered by their texts; 1.0 is 1 where all are whole numbers."""
    texts = pl.Series(values, dtype=pl.String)
    written = without_point(texts) if are_whole(texts) else texts
    used = np.bincount(codes, minlength=len(texts) + 1)[1:] > 0
    kept = sorted(set(written.filter(pl.Series(used))))
    places = {text: place for place, text in enumerate(kept, 1)}
    return np.array([0, *(places.get(text, 0) for text in written)], np.uint16)[codes], tuple(kept)


def context_note(values: Mapping[str, Sequence[str]]) -> str:
    """The features in one line, for the notes of meta.json."""
    return "context: " + ", ".join(f"{name} ({len(each):,} values)" for name, each in values.items())
