"""The vectors of a catalogue, in the form in which a bundle stores them, and looked up in fp32."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ItemPrecision = Literal["fp32", "fp16", "int8"]

_TYPES: dict[ItemPrecision, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

#: Vectors that the first of those that are added leave room for.
_LEAST_ROOM = 1_024


class ItemVectors:
    """Unit vectors of n items.

    ``rows``: (n, width), float32, float16, or int8. An int8 row has the direction of its vector and any length, so its
    scale, one through that length, is not stored. ``scales``: float32 (n,), those of int8 rows, else None.
    """

    def __init__(self, rows: NDArray[Any], scales: Floats | None = None) -> None:
        self.rows = rows
        self.precision: ItemPrecision = next(name for name, kind in _TYPES.items() if rows.dtype == kind)
        self.scales = scales
        if self.precision == "int8" and scales is None:
            squares = np.einsum("ij,ij->i", rows, rows, dtype=np.int32)
            with np.errstate(divide="ignore"):  # of a row of zeros, which a bundle refuses
                self.scales = 1 / np.sqrt(squares, dtype=np.float32)

    @classmethod
    def store(cls, vectors: Floats, precision: ItemPrecision) -> "ItemVectors":
        """Float32 unit rows in another precision; int8 rounds to a 127th of a row's largest component."""
        if precision == "int8":
            return cls(np.rint(vectors * (127 / np.abs(vectors).max(axis=1, keepdims=True))).astype(np.int8))
        return cls(np.ascontiguousarray(vectors, dtype=_TYPES[precision]))

    @staticmethod
    def type_of(precision: ItemPrecision) -> np.dtype[Any]:
        """Of the rows."""
        return np.dtype(_TYPES[precision])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Components of a vector."""
        return int(self.rows.shape[1])

    def take(self, items: NDArray[np.integer]) -> Floats:
        """The vectors of item indices, (..., width); -1 is the last item. IndexError for others outside 0..n-1."""
        found = self.rows.take(items, axis=0)
        if self.precision == "fp32":
            return found
        vectors: Floats = found.astype(np.float32)
        if self.scales is not None:
            vectors *= self.scales.take(items)[..., None]
        return vectors

    def padded(self, ids: NDArray[np.int64]) -> Floats:
        """The vectors of input ids (item index + 1), (..., width); zero for padding, 0."""
        vectors = self.take(ids - 1)
        if not ids.all():
            vectors[ids == 0] = 0
        return vectors

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them in fp32; for a GPU and for tests, not for every request."""
        every = self.take(np.arange(len(self)))
        return every if dtype is None else every.astype(dtype)


class GrowingVectors(ItemVectors):
    """The vectors of a bundle, and behind them those that are added while it serves, in the bundle's precision.

    Appended to in one thread; read in any. ``added``: those behind the bundle's, as they are now.
    """

    def __init__(self, trained: ItemVectors) -> None:
        self.rows, self.precision, self.scales = trained.rows, trained.precision, trained.scales
        self._trained = len(trained)
        self._room = trained.rows[:0]
        self._scales_room = None if trained.scales is None else trained.scales[:0]
        self.added: ItemVectors | None = None

    def append(self, vectors: Floats) -> None:
        """Add float32 unit rows (m, width)."""
        stored = ItemVectors.store(vectors, self.precision)
        used = len(self) - self._trained
        self._room = _extended(self._room, used, stored.rows)
        if stored.scales is not None and self._scales_room is not None:
            self._scales_room = _extended(self._scales_room, used, stored.scales)
        end = used + len(stored)
        # Only now can others see them.
        self.added = ItemVectors(self._room[:end], None if self._scales_room is None else self._scales_room[:end])

    def __len__(self) -> int:
        return self._trained + (0 if self.added is None else len(self.added))

    def take(self, items: NDArray[np.integer]) -> Floats:
        """See ItemVectors; index n is the first that was added."""
        added = self.added
        if added is None:
            return super().take(items)
        late = items >= self._trained
        vectors = super().take(np.where(late, 0, items))
        if late.any():
            vectors[late] = added.take(items[late] - self._trained)
        return vectors


def _extended(room: NDArray[Any], used: int, more: NDArray[Any]) -> NDArray[Any]:
    """An array that begins with the ``used`` rows of ``room``, then ``more``; with room for others behind them."""
    end = used + len(more)
    if end > len(room):
        larger = np.empty((max(2 * end, _LEAST_ROOM), *room.shape[1:]), room.dtype)
        larger[:used] = room[:used]
        room = larger
    room[used:end] = more
    return room
