"""A dataset folder is opened whole, or refused with the file that is wrong."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fathom.errors import ArtefactError, DataError
from fathom.files import sha256_file, write_json
from fathom.training.data import prepare
from fathom.training.dataset import INTERACTIONS, ITEMS, META, USERS, Dataset, Sequences

CSV = "user_id,item_id,timestamp\nb,y,30\na,x,10\na,y,20\nb,z,5\na,z,20\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "events.csv").write_text(CSV)
    prepare(str(tmp_path / "events.csv"), tmp_path / "dataset")
    return tmp_path / "dataset"


def test_a_dataset_holds_one_sequence_per_user_oldest_first(folder: Path) -> None:
    data = Dataset.load(folder)
    assert data.user_ids == ("a", "b")
    assert data.item_ids == ("x", "y", "z")
    assert [sequence.tolist() for sequence in data.sequences] == [[0, 1, 2], [2, 1]]
    assert data.sequences.times(1).tolist() == [5, 30]  # type: ignore[union-attr]
    assert (data.n_users, data.n_items, data.popularity.tolist()) == (2, 3, [1, 2, 2])
    assert data.titles == ("", "", "")
    assert data.categories == ((), (), ())
    assert data.sha256 == sha256_file(folder / META)


def test_sequences_can_be_selected_and_thinned() -> None:
    sequences = Sequences(np.arange(6, dtype=np.int32), np.array([0, 3, 3, 6]), np.arange(6, dtype=np.int64) * 10)
    assert [part.tolist() for part in sequences.select([2, 0, 1, 2])] == [[3, 4, 5], [0, 1, 2], [], [3, 4, 5]]
    kept = sequences.keep(sequences.items % 2 == 0)
    assert [part.tolist() for part in kept] == [[0, 2], [], [4]]
    assert kept.times(0).tolist() == [0, 20]  # type: ignore[union-attr]
    assert sequences.owners.tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(IndexError):
        sequences[3]
    with pytest.raises(IndexError):
        sequences.times(-1)


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "users.parquet"])
def test_a_missing_or_edited_file_is_refused_by_name(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=f"{name}: differs from its sha256"):
        Dataset.load(folder)
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name}: missing"):
        Dataset.load(folder)


def test_a_folder_without_meta_or_of_a_newer_schema_is_refused(folder: Path) -> None:
    meta = json.loads((folder / META).read_text())
    write_json(folder / META, meta | {"schema_version": 2})
    with pytest.raises(ArtefactError, match="newer than 1"):
        Dataset.load(folder)
    (folder / META).unlink()
    with pytest.raises(ArtefactError, match="no dataset here"):
        Dataset.load(folder)


@pytest.mark.parametrize("rows", [[(1, 0), (0, 0)], [(0, 9)], [(7, 0)], [(0, -1)], [(-1, 0)], []])
def test_events_that_contradict_the_id_maps_are_refused(folder: Path, rows: list[tuple[int, int]]) -> None:
    rewrite(folder, INTERACTIONS, pl.DataFrame(rows, schema={"user": pl.Int64, "item": pl.Int64}, orient="row"))
    with pytest.raises(DataError, match="not sorted by user, or beyond items and users"):
        Dataset.load(folder)


@pytest.mark.parametrize(
    ("name", "column"),
    [(INTERACTIONS, "user"), (INTERACTIONS, "item"), (INTERACTIONS, "timestamp"), (ITEMS, "id"), (USERS, "id")],
)
def test_a_row_without_a_value_that_every_row_needs_is_named(folder: Path, name: str, column: str) -> None:
    table = pl.read_parquet(folder / name)
    values = table[column].to_list() if column in table.columns else [0] * table.height
    rewrite(folder, name, table.with_columns(pl.Series(column, [*values[:1], None, *values[2:]])))
    with pytest.raises(DataError, match=rf"{name}: row 2 has no {column}; prepare the dataset again$"):
        Dataset.load(folder)
    rewrite(folder, name, table.with_columns(pl.Series(column, [0.5] * table.height)))
    with pytest.raises(DataError, match=rf"{name}: column '{column}' holds Float64, not "):
        Dataset.load(folder)
    rewrite(folder, name, table.select(pl.lit(1).alias("other")))
    with pytest.raises(DataError, match=rf"{name}: has no column "):
        Dataset.load(folder)


def rewrite(folder: Path, name: str, table: pl.DataFrame) -> None:
    """Another table in the folder, and its sha256 in meta.json."""
    table.write_parquet(folder / name)
    meta = json.loads((folder / META).read_text())
    meta["sha256"][name] = sha256_file(folder / name)
    write_json(folder / META, meta)
