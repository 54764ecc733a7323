"""One text per id, whatever file it came from."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.errors import DataError

#: How programs write that there is no value. Other spellings, such as Nan and Null, are people's names.
NOTHING = ("", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")

#: Places of ids.
Codes = NDArray[np.uint32]

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


class IdCoder:
    """Numbers ids as they turn up, batch by batch; of each id, text is kept once, and made only where it is asked for.

    With tens of millions of users the texts of all of them, sorted, would take more memory than everything else.
    """

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        #: Whether all ids so far are whole numbers, in whichever way they are written.
        self.are_whole = True

    def encode(self, ids: pl.Series) -> pl.Series:
        """Text (n,) as a categorical column (n,)."""
        self.are_whole = self.are_whole and are_whole(ids.unique())
        return ids.cast(self._type)

    def numbered(self, column: pl.Series) -> tuple[Codes, pl.Series]:
        """Each id's place, u32 (n,), in the series of different ids, which is categorical, or text of whole numbers."""
        places = column.to_physical().to_numpy()
        used = column.unique()
        used = used.gather(used.to_physical().arg_sort())
        if self.are_whole:  # 1 and 1.0 are the same id
            written = without_point(used.cast(pl.String))
            used = written.unique().sort()
            same = used.search_sorted(written).to_numpy().astype(np.uint32)
            places = same[places]
        return places, used
