"""Tables are read batch by batch, and every row that cannot be read is named, not lost."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import DataError
from fathom.training.tables import readers
from fathom.training.tables.readers import Table, column_names, layout_of, read, shorten

COLUMNS = {"user": "user_id", "item": "item_id"}


def table(path: Path, **changes: object) -> Table:
    return Table(path, layout_of(path), COLUMNS, **changes)  # type: ignore[arg-type]


def read_all(source: Table) -> pl.DataFrame:
    return pl.concat(read(source))


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_csv_fields_are_strings_in_the_files_order_with_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "item_id,other,user_id\ni1,x,u1\n\ni2,y,u2\n")
    frame = read_all(table(path))
    assert frame.select("row", "user", "item").rows() == [(2, "u1", "i1"), (4, "u2", "i2")]
    assert frame["problem"].null_count() == 2


def test_a_quoted_field_may_hold_delimiters_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'user_id,item_id\n"u,\n1",i1\nu2,i2\n')
    assert read_all(table(path)).select("row", "user").rows() == [(2, "u,\n1"), (4, "u2")]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbfuser_id,item_id\nu,i\n")
    assert column_names(path, "csv") == ("user_id", "item_id")
    assert read_all(table(path))["user"].to_list() == ["u"]


def test_rows_of_another_width_or_encoding_are_marked_where_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"user_id,item_id\nu1,i1\nu2\nu3,i3,x\nu\xff,i4\nu5,i5\n")
    frame = read_all(table(path))
    assert frame["row"].to_list() == [2, 3, 4, 5, 6]
    assert frame["problem"].to_list() == [
        None,
        "1 columns instead of 2",
        "3 columns instead of 2",
        "not utf-8",
        None,
    ]
    assert frame["user"].to_list() == ["u1", None, None, None, "u5"]
    assert frame["content"].to_list() == [None, "u2", "u3,i3,x", "u�,i4", None]


def test_an_endless_quote_costs_one_marked_row_not_the_file(tmp_path: Path) -> None:
    lines = "".join(f"u{n},i{n}\n" for n in range(60_000))
    path = write(tmp_path / "a.csv", 'user_id,item_id\n"u,i\n' + lines)
    frame = read_all(table(path))
    assert frame.filter(pl.col("problem").is_not_null())["row"].to_list()[0] == 2
    assert frame["user"].to_list()[-1] == "u59999"


def test_long_delimiters_and_files_without_header_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.dat", "1::Caf\xe9\r\n2::b\n".encode("latin-1"))
    source = Table(path, "csv", {"item": "title"}, names=("id", "title"), delimiter="::", encoding="latin-1")
    assert read_all(source)["item"].to_list() == ["Café", "b"]


def test_gzip_is_read_and_a_truncated_one_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b"user_id,item_id\n" + b"u,i\n" * 10_000)
    assert read_all(table(write(tmp_path / "a.csv.gz", packed))).height == 10_000
    with pytest.raises(DataError, match="cannot be read to its end"):
        read_all(table(write(tmp_path / "b.csv.gz", packed[:-20])))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl", "a.xlsx"])
def test_a_missing_file_or_column_is_one_clear_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read_all(table(path))
    if name == "a.jsonl":
        return  # keys are per line there: see the rows' own errors
    frame = pl.DataFrame({"user_id": ["u"], "thing": ["i"]})
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "xlsx": lambda p: write_xlsx(p, [[("user_id", "thing")]])}[
        path.suffix[1:]
    ](path)
    with pytest.raises(DataError, match="no column 'item_id'; it has: user_id, thing"):
        read_all(table(path))


@pytest.mark.parametrize("name", ["a.parquet", "a.xlsx"])
def test_a_file_that_is_not_of_its_format_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"not an? (parquet|xlsx) file"):
        read_all(table(write(tmp_path / name, b"nonsense")))


def test_an_unknown_ending_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown format; known endings: \.parquet, \.csv"):
        layout_of(Path("a.dat"))


def test_parquet_is_read_in_slices_with_native_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PARQUET_BATCH_ROWS", 7)
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user_id": range(20), "item_id": [str(n) for n in range(20)]}).write_parquet(path, row_group_size=6)
    batches = list(read(table(path)))
    assert [batch.height for batch in batches] == [7, 7, 6]
    frame = pl.concat(batches)
    assert frame["user"].to_list() == list(range(20))
    assert frame["row"].to_list() == list(range(1, 21))


def write_xlsx(path: Path, sheets: list[list[tuple[object, ...]]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Year {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_all_sheets_of_a_workbook_are_read_and_whole_numbers_have_no_point(tmp_path: Path) -> None:
    header = ("user_id", "item_id")
    write_xlsx(tmp_path / "a.xlsx", [[header, (1.0, "a"), (None, "b")], [header, (2, 85048)]])
    frame = read_all(table(tmp_path / "a.xlsx"))
    assert frame.select("user", "item").rows() == [("1", "a"), ("", "b"), ("2", "85048")]


def test_json_lines_that_cannot_be_read_are_marked_with_their_content(tmp_path: Path) -> None:
    good = '{"user_id": "u", "item_id": 7, "text": "more"}'
    path = write(tmp_path / "a.jsonl", f'{good}\n{{"user_id": \n\n[1]\n{good}\n'.encode() + b'{"user_id": "\xff"}')
    frame = read_all(table(path))
    assert frame["row"].to_list() == [1, 2, 4, 5, 6]
    assert frame["problem"].to_list() == [None, "invalid JSON", "not a JSON object", None, "not UTF-8"]
    assert frame["item"].to_list() == ["7", None, None, "7", None]
    assert frame["content"][1] == '{"user_id":'


@settings(max_examples=25, deadline=None)
@given(kinds=st.lists(st.sampled_from(["good", "bad", "blank"]), min_size=1, max_size=60), block=st.integers(1, 200))
def test_json_blocks_of_any_size_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], block: int
) -> None:
    texts = {"bad": "{nonsense", "blank": ""}
    lines = [texts.get(kind, json.dumps({"user_id": f"u{n}", "item_id": n})) for n, kind in enumerate(kinds)]
    path = write(tmp_path_factory.mktemp("json") / "a.jsonl", "\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", block)
        batches = list(read(table(path)))
    found = pl.concat(batches).rows(named=True) if batches else []
    expected = [(n + 1, kind) for n, kind in enumerate(kinds) if kind != "blank"]
    assert [row["row"] for row in found] == [row for row, _ in expected]
    assert [row["problem"] is None for row in found] == [kind == "good" for _, kind in expected]
    assert [row["user"] for row in found if row["problem"] is None] == [
        f"u{row - 1}" for row, kind in expected if kind == "good"
    ]


def test_a_broken_json_line_costs_two_parses_and_not_a_search_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f'{{"user": "u{n}", "item": "i"}}' if n % 50 else "broken" for n in range(1_000)]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines))
    calls, parse = [], pl.read_ndjson

    def counted(*args: Any, **kwargs: Any) -> pl.DataFrame:
        calls.append(args)
        return parse(*args, **kwargs)

    monkeypatch.setattr(pl, "read_ndjson", counted)
    table = pl.concat(read(Table(path, "jsonl", {"user": "user", "item": "item"})))
    assert table["row"].to_list() == list(range(1, 1_001))
    assert table["problem"].drop_nulls().to_list() == ["invalid JSON"] * 20
    assert len(calls) <= 2 + 2 * 20


def test_shortened_content_is_one_printable_line() -> None:
    assert shorten("a\nb\x00") == "a\\nb\\x00"
    assert len(shorten("x" * 1000)) == readers.CONTENT_CHARS
