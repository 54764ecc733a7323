"""One text per id, whatever file it came from."""

from decimal import Decimal
from pathlib import Path

import polars as pl

from fathom.errors import DataError

#: How programs write that there is no value. Other spellings, such as Nan and Null, are people's names.
NOTHING = ("", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")

_WHOLE = r"^[+-]?\d+$"
_NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?$"


def identifiers(raw: pl.Series, path: Path) -> pl.Series:
    """Ids as text without spaces around them, null where there is none; whole numbers in a column of floats have no
    point and no exponent.

    Raises DataError for a type that holds no ids.
    """
    if raw.dtype.is_nested() or raw.dtype in (pl.Object, pl.Time, pl.Duration):
        raise DataError(f"{path}: a column has an unusable type: {raw.name} ids are text or numbers, not {raw.dtype}")
    if raw.dtype.is_float():
        text = raw.set(~raw.is_finite().fill_null(False), None).cast(pl.String)
        return without_point(text)
    text = raw.cast(pl.String).str.strip_chars()
    return text.set(text.is_in(NOTHING).fill_null(True), None)


def are_whole(ids: pl.Series) -> bool:
    """Whether all ids are whole numbers, in whichever way they are written."""
    return bool(ids.str.contains(_NUMBER).all()) and bool(without_point(ids).str.contains(_WHOLE).all())


def without_point(ids: pl.Series) -> pl.Series:
    """Ids with whole numbers such as 1.0 and 1e+17 written as 1 and 100000000000000000; all others as they are."""
    odd = ids.str.contains(r"[.eE]") & ids.str.contains(_NUMBER)
    if not odd.any():
        return ids
    spelled = {text: _spelled(text) for text in ids.filter(odd.fill_null(False)).unique()}
    return ids.replace(list(spelled), list(spelled.values()))


def _spelled(text: str) -> str:
    number = Decimal(text)
    return str(int(number)) if number == number.to_integral_value() else text
