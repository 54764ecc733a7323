"""The users that are scored: from a dataset folder, a table of lists, or a table of events."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.artefacts import DATASET
from fathom.errors import DataError
from fathom.files import sha256_file
from fathom.tools.scoring.answers import Piece
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import Dataset, Progress, Sequences
from fathom.training.tables.readers import column_names, layout_of, shorten

USER, ITEMS, TIMES = "user_id", "item_ids", "timestamps"
LAST_SECOND_OF_9999 = 253_402_300_799
#: So many pieces, if they have at least and at most so many users.
PIECES, LEAST_USERS, MOST_USERS = 64, 256, 8192


@dataclass(frozen=True)
class Users:
    """Users and their histories, one sequence each, of indices of a bundle's catalogue, perhaps empty.

    ``unknown_items``: events left out, because the catalogue does not have their items. ``sha256``: of the input.
    """

    ids: tuple[str, ...]
    histories: Sequences
    unknown_items: int
    sha256: str

    @property
    def piece_size(self) -> int:
        """Users of one piece; it depends only on how many there are."""
        return min(max(len(self.ids) // PIECES, LEAST_USERS), MOST_USERS)

    def pieces(self) -> list[Piece]:
        """All users in their order; the last piece may be smaller."""
        size = self.piece_size
        return [self._piece(number, self.slice_of(number)) for number in range(-(-len(self.ids) // size))]

    def slice_of(self, number: int) -> slice:
        """Which users a piece holds."""
        return slice(number * self.piece_size, min((number + 1) * self.piece_size, len(self.ids)))

    def _piece(self, number: int, users: slice) -> Piece:
        offsets, times = self.histories.offsets[users.start : users.stop + 1], self.histories.timestamps
        events = slice(offsets[0], offsets[-1])
        timestamps = None if times is None else times[events]
        return Piece(number, self.histories.items[events], offsets - offsets[0], timestamps)


def read_users(path: Path, index: Mapping[str, int], progress: Progress) -> Users:
    """The users of a dataset folder or a table; ``index``: item id -> index of the catalogue.

    A table with a column of lists, item_ids, has a row per user (user_id, item_ids, oldest first, and perhaps
    timestamps, in seconds); another one a row per event, as `fathom data prepare` reads it, repeats kept. Raises
    ArtefactError or DataError, in one line.
    """
    if path.is_dir() and DATASET.is_at(path):
        dataset = Dataset.load(path)
        return _known(dataset.user_ids, dataset.sequences, dataset.item_ids, index, dataset.sha256)
    if path.is_dir():
        raise DataError(f"{path}: a folder, but no dataset; give a dataset, or a csv, parquet or jsonl file")
    layout = layout_of(path)
    if layout in ("parquet", "jsonl") and ITEMS in column_names(path, layout):
        return _of_lists(path, _table_of_lists(path, layout), index)
    with tempfile.TemporaryDirectory(prefix="fathom-score-") as folder:
        options = PrepareOptions(repeats="keep")
        dataset = prepare(str(path), Path(folder) / "dataset", options=options, progress=progress)
    return _known(dataset.user_ids, dataset.sequences, dataset.item_ids, index, sha256_file(path))


def _known(
    users: tuple[str, ...], histories: Sequences, item_ids: tuple[str, ...], index: Mapping[str, int], sha256: str
) -> Users:
    """With indices of the catalogue, and without the items that it does not have."""
    places = np.array([index.get(item, -1) for item in item_ids], np.int32)
    moved = Sequences(places[histories.items], histories.offsets, histories.timestamps)
    known = moved.items >= 0
    return Users(users, moved if known.all() else moved.keep(known), int((~known).sum()), sha256)


def _table_of_lists(path: Path, layout: str) -> pl.DataFrame:
    """The columns user_id, item_ids and, where there is one, timestamps, of their types, without nulls."""
    try:
        frame = pl.read_parquet(path) if layout == "parquet" else pl.read_ndjson(path, infer_schema_length=None)
        wanted: dict[str, Any] = {USER: pl.String, ITEMS: pl.List(pl.String), TIMES: pl.List(pl.Int64)}
        if USER not in frame.columns:
            raise DataError(f"{path}: has {ITEMS} but no column {USER}, which says whose they are")
        frame = frame.select(pl.col(name).cast(kind) for name, kind in wanted.items() if name in frame.columns)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{path}: no table of {USER}, lists {ITEMS} and {TIMES} ({shorten(str(error))})") from None
    for name in frame.columns:
        column = frame[name]
        if column.null_count() or (name != USER and column.list.explode(empty_as_null=False).null_count()):
            raise DataError(
                f"{path}: a value is missing in {name}; give every user an id and a list, which may be empty"
            )
    return frame


def _of_lists(path: Path, frame: pl.DataFrame, index: Mapping[str, int]) -> Users:
    lengths = frame[ITEMS].list.len().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    codes = frame[ITEMS].list.explode(empty_as_null=False)
    distinct = codes.unique().sort()
    items = distinct.search_sorted(codes).to_numpy().astype(np.int32) if len(codes) else np.empty(0, np.int32)
    times = None
    if TIMES in frame.columns:
        times = frame[TIMES].list.explode(empty_as_null=False).to_numpy().astype(np.int64)
        _check_times(path, frame, lengths, offsets, times)
    sequences = Sequences(items, offsets, times)
    return _known(tuple(frame[USER].to_list()), sequences, tuple(distinct.to_list()), index, sha256_file(path))


def _check_times(
    path: Path, frame: pl.DataFrame, lengths: NDArray[np.int64], offsets: NDArray[np.int64], times: NDArray[np.int64]
) -> None:
    """What a server refuses in a request."""
    other = np.flatnonzero(frame[TIMES].list.len().to_numpy() != lengths)
    if len(other):
        raise DataError(f"{path}: row {other[0] + 1:,} has other numbers of {ITEMS} and {TIMES}; give one per item")
    if len(times) and not 0 <= times.min() <= times.max() <= LAST_SECOND_OF_9999:
        raise DataError(f"{path}: {TIMES} are seconds since 1970, none negative or after the year 9999")
    falls = np.flatnonzero(times[1:] < times[:-1]) + 1
    falls = falls[~np.isin(falls, offsets)]
    if len(falls):
        row = int(np.searchsorted(offsets, falls[0], side="right"))
        raise DataError(f"{path}: the {TIMES} of row {row:,} fall; give histories oldest first")
