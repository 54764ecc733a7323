"""Columns are found by their usual names; two for one role are refused, and what is not used is named."""

from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fathom.errors import ConfigError, DataError
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import Dataset
from fathom.training.tables.columns import USUAL
from fathom.training.tables.json_lines import NO_NUMBER


def prepared(tmp_path: Path, columns: dict[str, list[Any]], **options: Any) -> Dataset:
    path = tmp_path / "clicks.csv"
    pl.DataFrame(columns).write_csv(path)
    return prepare(str(path), tmp_path / "out", options=PrepareOptions(**options))


SHUFFLED = {"userId": ["u", "u"], "movieId": ["b", "a"]}


@pytest.mark.parametrize("name", ["time", "event_time", "TIMESTAMP", "Event Time", "ts", "created_at", "time:float"])
def test_a_time_under_a_usual_name_orders_events(tmp_path: Path, name: str) -> None:
    data = prepared(tmp_path, SHUFFLED | {name: [1_600_000_001, 1_600_000_000], "zip": [1, 2]})
    assert [data.item_ids[item] for item in data.sequences[0]] == ["a", "b"]
    assert data.meta["interactions"]["unused"] == ["zip"]
    assert (
        f"columns: user from 'userId', item from 'movieId', timestamp from '{name}'; not used: zip"
        in data.meta["notes"]
    )


def test_without_time_and_position_the_files_order_is_used_and_said(tmp_path: Path) -> None:
    data = prepared(tmp_path, SHUFFLED)
    assert [data.item_ids[item] for item in data.sequences[0]] == ["b", "a"]
    assert (
        "order: each user's events are in the file's order, for want of a time or position column" in data.meta["notes"]
    )
    ordered = prepared(tmp_path, SHUFFLED | {"pos": [2.0, 1.0]})
    assert [ordered.item_ids[item] for item in ordered.sequences[0]] == ["a", "b"]


def test_a_position_that_is_asked_for_goes_before_a_time_that_is_not(tmp_path: Path) -> None:
    columns = SHUFFLED | {"time": [1, 2], "place": [2, 1]}
    data = prepared(tmp_path, columns, position_column="place")
    assert [data.item_ids[item] for item in data.sequences[0]] == ["a", "b"]
    assert data.meta["interactions"]["unused"] == ["time"]
    with pytest.raises(ConfigError, match="both order a user's events"):
        prepared(tmp_path, columns, position_column="place", timestamp_column="time")


@pytest.mark.parametrize("role", ["user", "item", "timestamp", "position", "rating"])
def test_two_candidates_for_one_role_are_refused_naming_both_and_the_option(tmp_path: Path, role: Any) -> None:
    plain = {"user": "user_id", "item": "item_id"} | ({} if role in ("user", "item") else {role: role})
    for first, second in list(combinations(USUAL[role], 2))[:5]:
        names = [*(name for other, name in plain.items() if other != role), first, second]
        columns = {name: ["1"] for name in names}
        with pytest.raises(DataError) as caught:
            prepared(tmp_path, columns)
        assert f"{first!r} and {second!r} could both be the {role}; choose one with --{role}-column" in str(
            caught.value
        )
        chosen = prepared(tmp_path, columns, **{f"{role}_column": first})
        assert chosen.meta["interactions"]["columns"][role] == first
        assert chosen.meta["interactions"]["unused"] == [second]


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,user_id\nu,i,v\n")
    with pytest.raises(DataError, match="two columns are called 'user_id'"):
        prepare(str(tmp_path / "a.csv"), tmp_path / "out")


def test_recbole_headers_and_endings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t1600000001.0\n1\t3\t1600000000.0\n")
    data = prepare(str(path), tmp_path / "out", options=PrepareOptions(user_column="user_id"))
    assert [data.item_ids[item] for item in data.sequences[0]] == ["3", "2"]
    assert data.meta["name"] == "ml"


HALF = "not text (half a surrogate pair)"
EVENTS = {"user": ["u", "v"], "item": ["1", "2"]}


@pytest.mark.parametrize(
    ("name", "text", "titles", "categories"),
    [
        ("i.csv", "movieId,title,genres\n1,One,a|b\n", ("One", ""), (("a", "b"), ())),
        ("i.csv", "id;NAME\n1;One\n2;Two\n", ("One", "Two"), ((), ())),
        ("i.csv", 'item,categories\n1.0,"toys, dolls"\n2,toys\n', ("", ""), (("toys", "dolls"), ("toys",))),
        ("i.csv", "item,categories\n1,\"['a, b', 'c']\"\n", ("", ""), (("a, b", "c"), ())),
        ("i.jsonl", '{"item": 1, "categories": "toys; dolls"}\n', ("", ""), (("toys", "dolls"), ())),
        ("i.jsonl", '{"item": 1, "categories": ["a, b", "c", "c"]}\n', ("", ""), (("a, b", "c"), ())),
        ("i.json", '[{"item": 1, "categories": [["a", "b"], ["c"]]}]', ("", ""), (("a", "b", "c"), ())),
        ("i.item", "item_id:token\tmovie_title:token_seq\n2\tTwo\n", ("", "Two"), ((), ())),
    ],
)
def test_item_metadata_of_any_format_is_matched_and_counted(
    tmp_path: Path, name: str, text: str, titles: tuple[str, ...], categories: tuple[tuple[str, ...], ...]
) -> None:
    (tmp_path / name).write_text(text)
    data = prepared(tmp_path, EVENTS, items_path=tmp_path / name)
    assert data.titles == titles
    assert data.categories == categories
    matched = sum(bool(title or names) for title, names in zip(titles, categories, strict=True))
    assert data.meta["items"]["matched"] == matched
    assert any(
        note.startswith(f"item data: {matched} of 2 items are in {name}; id from ") for note in data.meta["notes"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("movieId,label\n1,One\n", "no column for titles or categories; it has: movieId, label; name them with"),
        ("key,title\n1,One\n", "no column for the id .* name it with --items-id-column"),
        ("item,title\n7,Seven\n", r"none of its ids \(7\) is an item of the interactions \(1, 2\)"),
        ("item,title,name\n1,One,Uno\n", "'title' and 'name' could both be the title; choose one with --title-column"),
    ],
)
def test_item_metadata_that_would_be_dropped_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "i.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, EVENTS, items_path=tmp_path / "i.csv")


def test_item_metadata_goes_by_option_and_names_what_it_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("key,label,price\n1,One,3\n2,Two,4\n")
    data = prepared(tmp_path, EVENTS, items_path=tmp_path / "i.csv", items_id_column="key", title_column="label")
    assert data.titles == ("One", "Two")
    assert data.meta["items"]["unused"] == ["price"]


@pytest.mark.parametrize(
    ("name", "called"), [("clicks.csv", "clicks"), ("my.clicks.csv", "my.clicks"), ("clicks.csv.gz", "clicks")]
)
def test_a_data_set_is_called_after_its_file(tmp_path: Path, name: str, called: str) -> None:
    (tmp_path / name).write_text("user,item\nu,i\n")
    assert prepare(str(tmp_path / name), tmp_path / "out").meta["name"] == called


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"user": "u", "item": "a"}\n{"user": "u", "item": "b", "time": 2}\n', {"missing timestamp": 1}),
        ('{"user": {"a": 1}, "item": "a"}\n{"user": "u", "item": "b"}\n', {"user is a list or an object": 1}),
        ('{"user": "u", "item": ' + "[" * 9999 + '}\n{"user": "u", "item": "b"}\n', {"invalid JSON": 1}),
        ('{"user": "u", "item": "b"}\n{"user": "u", "item": "a", "\\ud800": 1}\n', {HALF: 1}),
        ('{"user": "\\ud800", "item": "a"}\n{"user": "u", "item": "b"}\n', {HALF: 1}),
        ('["u", "a"]\n{"user": "u", "item": "b"}\n', {"not a JSON object": 1}),
        ('null\n{"user": "u", "item": "b"}\n', {"not a JSON object": 1}),
        ('{"user": "u", "item": "a", "x": NaN}\n{"user": "u", "item": "b"}\n', {NO_NUMBER: 1}),
    ],
)
def test_json_rows_that_cannot_be_used_are_counted(tmp_path: Path, text: str, names: dict[str, int]) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    data = prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", options=PrepareOptions(max_malformed=0.5))
    assert data.meta["interactions"]["malformed"] == {"rows": 1} | names
    assert data.item_ids == ("b",)


@pytest.mark.parametrize(
    "text", ["", "[" * 99_999, '{\n  "user": "u",\n  "item": "i"\n}\n', '[{"user": "u"},\n{"item": ']
)
def test_json_that_is_neither_lines_nor_an_array_says_what_is_wanted(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"one object per line is wanted|neither JSON lines nor one JSON array"):
        prepare(str(tmp_path / "a.json"), tmp_path / "out")


@pytest.mark.parametrize("row", ["u,a", "u,a,1,2"])
def test_columns_without_a_name_are_named_all_the_same(tmp_path: Path, row: str) -> None:
    columns = ",".join(["user", "item", "", ""][: row.count(",") + 1])
    (tmp_path / "a.csv").write_text(f"{columns}\n{row}\n")
    notes = prepare(str(tmp_path / "a.csv"), tmp_path / "out").meta["notes"]
    assert notes[0].count("(no name)") == row.count(",") - 1


def test_one_column_is_not_both_user_and_item(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'user' cannot be both user and item"):
        prepared(tmp_path, {"user": ["u"], "thing": ["i"]}, item_column="user")


@pytest.mark.parametrize("option", [{"timestamp_unit": "ms"}, {"timestamp_format": "%Y"}])
def test_an_option_about_times_without_a_time_column_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="name it with --timestamp-column"):
        prepared(tmp_path, {"user": ["u"], "item": ["i"], "moment": ["2020"]}, **option)


@pytest.mark.parametrize("value", [{"en": "x"}, [{"en": "x"}]])
@pytest.mark.parametrize("name", ["title", "categories"])
def test_objects_of_parquet_are_no_titles_and_no_categories(tmp_path: Path, name: str, value: Any) -> None:
    pl.DataFrame({"item": ["i"], name: [value]}).write_parquet(tmp_path / "things.parquet")
    with pytest.raises(DataError, match=f"{name} from '{name}' is .*Struct.*, not text"):
        prepared(tmp_path, {"user": ["u"], "item": ["i"]}, items_path=tmp_path / "things.parquet")


def test_categories_that_are_objects_go_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "things.jsonl").write_text('{"item": "i", "genres": [{"id": 1, "name": "Comedy"}, {"name": "War"}]}')
    data = prepared(tmp_path, {"user": ["u"], "item": ["i"]}, items_path=tmp_path / "things.jsonl")
    assert data.categories == (("Comedy", "War"),)
