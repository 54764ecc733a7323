"""The dataset folder in memory: one item sequence per user, oldest first, and the frozen id map.

interactions.parquet   user u32, item u32, [timestamp i64 seconds], [weight f32], [context:FEATURE u16]; sorted by user,
                       then by order
items.parquet          id str, title str, categories list[str]; row i is item i
users.parquet          id str; row i is user i
meta.json              counts, filters, source, malformed rows, values of the context, sha256 of the three files
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.artefacts import DATASET, expect
from fathom.errors import ArtefactError, DataError
from fathom.files import read_json, sha256_file
from fathom.training.tables.context import PREFIX

SCHEMA_VERSION = 1
INTERACTIONS, ITEMS, USERS, META = "interactions.parquet", "items.parquet", "users.parquet", "meta.json"

#: Told what is being done, in a line.
Progress = Callable[[str], None]
Items = NDArray[np.int32]
Times = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contexts:
    """The context of n events or requests, such as country and device.

    values: feature -> its values; codes: int32 (n, features), places in these from 1; 0 where unknown.
    """

    values: Mapping[str, tuple[str, ...]]
    codes: NDArray[np.int32]

    def select(self, chosen: NDArray[Any]) -> "Contexts":
        """The chosen ones, indices (m,) or mask (n,)."""
        return Contexts(self.values, self.codes[chosen])


@dataclass(frozen=True)
class Sequences:
    """Many item sequences in one array.

    items: int32 (events,), item indices, oldest first; offsets: int64 (n + 1,), sequence i is
    items[offsets[i]:offsets[i + 1]]; timestamps: int64 (events,) in seconds, or None when unknown; weights: float32
    (events,), above 0, what each event counts in training, or None when all count the same. asked: int64 (n,), the
    second at which a request comes with each sequence, 0 where unknown, or None when unknown of all. contexts: of the
    events; asked_contexts: of the n requests; None when the data has none.
    """

    items: Items
    offsets: NDArray[np.int64]
    timestamps: Times | None = None
    weights: NDArray[np.float32] | None = None
    asked: Times | None = None
    contexts: Contexts | None = None
    asked_contexts: Contexts | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Items:
        """The items of sequence ``index``, int32 (its events,), a view."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.items[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Items]:
        return (self[index] for index in range(len(self)))

    def times(self, index: int) -> Times | None:
        """The timestamps of sequence ``index``, int64 seconds (its events,), a view; None when the data has none."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.timestamps is None:
            return None
        return self.timestamps[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each sequence, int64 (n,)."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The sequence that each event belongs to, int64 (events,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def keep(self, events: NDArray[np.bool_]) -> "Sequences":
        """As many sequences, with only the marked events; bool (events,)."""
        lengths = np.bincount(self.owners[events], minlength=len(self))
        kept = self._of(events, np.concatenate([[0], np.cumsum(lengths)]))
        return replace(kept, asked=self.asked, asked_contexts=self.asked_contexts)

    def select(self, indices: Iterable[int] | NDArray[np.integer[Any]]) -> "Sequences":
        """The chosen sequences, indices (n,), in the given order."""
        chosen = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        events = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        asked = None if self.asked is None else self.asked[chosen]
        contexts = None if self.asked_contexts is None else self.asked_contexts.select(chosen)
        return replace(self._of(events, offsets), asked=asked, asked_contexts=contexts)

    def _of(self, events: NDArray[Any], offsets: NDArray[np.int64]) -> "Sequences":
        times = None if self.timestamps is None else self.timestamps[events]
        weights = None if self.weights is None else self.weights[events]
        contexts = None if self.contexts is None else self.contexts.select(events)
        return Sequences(self.items[events], offsets, times, weights, contexts=contexts)


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: user i's events are ``sequences[i]``; item i is row i of items.parquet.

    titles: "" where unknown; categories: () where unknown; sha256: of meta.json, which holds the
    sha256 of every other file, so that it names the whole dataset.
    """

    sequences: Sequences
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    user_ids: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str

    @property
    def n_items(self) -> int:
        """Items in the catalogue."""
        return len(self.item_ids)

    @property
    def n_users(self) -> int:
        """Users, one sequence each."""
        return len(self.user_ids)

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """Events of each item over the whole dataset, int64 (n_items,)."""
        return np.bincount(self.sequences.items, minlength=self.n_items).astype(np.int64)

    @classmethod
    def load(cls, path: Path) -> "Dataset":
        """Open a dataset folder.

        Raises ArtefactError when a file is missing or is not the one that meta.json names, DataError
        when a value is missing or the files contradict each other.
        """
        expect(path, DATASET)
        meta = read_json(path / META, kind="dataset", schema_version=SCHEMA_VERSION)
        for name in (INTERACTIONS, ITEMS, USERS):
            _check(path / name, meta.get("sha256", {}).get(name))
        events, items, users = _table(path / INTERACTIONS), _table(path / ITEMS), _table(path / USERS)
        sequences = _sequences(events, path, n_users=users.height, n_items=items.height)
        return cls(
            sequences=replace(sequences, contexts=_contexts(events, path, meta.get("context", {}))),
            item_ids=tuple(items["id"].to_list()),
            titles=tuple(items["title"].fill_null("").to_list()),
            categories=tuple(tuple(names or ()) for names in items["categories"].to_list()),
            user_ids=tuple(users["id"].to_list()),
            meta=meta,
            sha256=sha256_file(path / META),
        )


def _check(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise ArtefactError(f"{path}: missing from the dataset; prepare it again")
    if sha256_file(path) != expected:
        raise ArtefactError(f"{path}: differs from its sha256 in {META}; prepare the dataset again")


#: Each table's columns, and whether every row must have a value; _OPTIONAL ones may be missing as a whole.
_COLUMNS: dict[str, dict[str, tuple[str, bool]]] = {
    INTERACTIONS: {
        **dict.fromkeys(("user", "item", "timestamp"), ("integers", True)),
        "weight": ("32-bit floats", True),
    },
    ITEMS: {"id": ("text", True), "title": ("text", False), "categories": ("lists of text", False)},
    USERS: {"id": ("text", True)},
}
_OPTIONAL = ("timestamp", "weight")
_KINDS: dict[str, Callable[[Any], bool]] = {
    "integers": lambda dtype: bool(dtype.is_integer()),
    "32-bit floats": lambda dtype: dtype == pl.Float32,
    "text": lambda dtype: dtype in (pl.String, pl.Null),
    "lists of text": lambda dtype: dtype in (pl.List(pl.String), pl.Null),
}


def _table(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError):
        raise ArtefactError(f"{path}: not a parquet file; prepare the dataset again") from None
    for name, (kind, complete) in _COLUMNS[path.name].items():
        if name not in table.columns:
            if name in _OPTIONAL:
                continue
            raise DataError(f"{path}: has no column {name!r}; prepare the dataset again")
        column = table[name]
        if not _KINDS[kind](column.dtype):
            raise DataError(f"{path}: column {name!r} holds {column.dtype}, not {kind}; prepare the dataset again")
        if complete and column.null_count():
            row = int(column.is_null().arg_true()[0])
            raise DataError(f"{path}: row {row + 1:,} has no {name}; prepare the dataset again")
    return table


def _sequences(events: pl.DataFrame, path: Path, *, n_users: int, n_items: int) -> Sequences:
    users, items = events["user"].to_numpy(), events["item"].to_numpy()
    beyond = len(users) == 0 or users[-1] >= n_users or items.max() >= n_items or min(users[0], items.min()) < 0
    if beyond or np.any(users[1:] < users[:-1]):
        raise DataError(f"{path / INTERACTIONS}: not sorted by user, or beyond items and users; prepare it again")
    offsets = np.searchsorted(users, np.arange(n_users + 1)).astype(np.int64)
    times = events["timestamp"].to_numpy().astype(np.int64) if "timestamp" in events.columns else None
    weights = events["weight"].to_numpy() if "weight" in events.columns else None
    if weights is not None and not (np.isfinite(weights).all() and weights.min() > 0):
        raise DataError(f"{path / INTERACTIONS}: a weight is not a number above 0; prepare the dataset again")
    return Sequences(items.astype(np.int32), offsets, times, weights)


def _contexts(events: pl.DataFrame, path: Path, values: Any) -> Contexts | None:
    if not isinstance(values, dict) or not all(
        isinstance(known, list) and set(map(type, known)) <= {str} for known in values.values()
    ):
        raise DataError(f"{path / META}: context is not a list of texts for each feature; prepare the dataset again")
    columns = []
    for feature, known in values.items():
        found = events.get_column(PREFIX + feature, default=None)
        if found is None or not found.dtype.is_integer() or not found.is_between(0, len(known)).fill_null(False).all():
            raise DataError(
                f"{path / INTERACTIONS}: column {PREFIX + feature!r} does not hold places among its values in {META};"
                " prepare the dataset again"
            )
        columns.append(found.to_numpy().astype(np.int32))
    if not columns:
        return None
    return Contexts({feature: tuple(known) for feature, known in values.items()}, np.stack(columns, axis=1))
