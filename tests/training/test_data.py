"""Raw interactions become one dataset: filtered, ordered, numbered, whole or not at all."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError, DataError, OutputError
from fathom.training.data import PrepareOptions, default_options, k_core, prepare
from fathom.training.dataset import Dataset
from fathom.training.tables import readers

Event = tuple[str, str, float, int]  # user, item, rating, time in seconds


def write_csv(path: Path, events: list[Event]) -> Path:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    frame.write_csv(path)
    return path


def as_lists(data: Dataset) -> dict[str, list[str]]:
    return {
        user: [data.item_ids[item] for item in items] for user, items in zip(data.user_ids, data.sequences, strict=True)
    }


EVENTS: list[Event] = [
    ("u2", "a", 5, 30),
    ("u1", "b", 1, 20),
    ("u1", "a", 4, 20),
    ("u2", "b", 3, 10),
    ("u1", "b", 5, 40),
    ("u2", "c", 2, 30),
]


def test_events_are_sorted_by_user_and_time_with_ties_in_input_order(tmp_path: Path) -> None:
    data = prepare(str(write_csv(tmp_path / "a.csv", EVENTS)), tmp_path / "out")
    assert as_lists(data) == {"u1": ["b", "a"], "u2": ["b", "a", "c"]}
    assert data.item_ids == ("a", "b", "c")
    assert data.sequences.times(1).tolist() == [10, 30, 30]  # type: ignore[union-attr]
    assert data.meta["counts"] == {"users": 2, "items": 3, "events": 5}
    assert data.meta["filters"]["removed"] == {"repeats": 1}


def test_repeats_are_kept_by_option_and_ratings_below_the_minimum_left_out(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", EVENTS))
    kept = prepare(path, tmp_path / "kept", options=PrepareOptions(repeats="keep"))
    assert as_lists(kept)["u1"] == ["b", "a", "b"]
    liked = prepare(path, tmp_path / "liked", options=PrepareOptions(minimum_rating=4))
    assert as_lists(liked) == {"u1": ["a", "b"], "u2": ["a"]}
    assert liked.meta["interactions"]["filtered"] == {"rating below 4": 3}


def test_the_share_of_repeats_in_the_last_training_events_is_counted_before_they_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    users = {"again": "a b a c d", "new": "a b c d d", "short": "a a a"}  # the last two are held out
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items.split(), 1)]
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{1_600_000_000 + t}\n" for u, i, t in reversed(rows)))
    for repeats in ("keep", "drop"):
        data = prepare(str(path), tmp_path / repeats, options=PrepareOptions(repeats=repeats))  # type: ignore[arg-type]
        assert data.meta["repeats"] == {"next_events": 2, "of_known_items": 1}


def test_the_same_input_gives_the_same_dataset_to_the_byte(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", EVENTS))
    assert prepare(path, tmp_path / "one").sha256 == prepare(path, tmp_path / "two").sha256


def test_without_time_a_position_orders_and_without_either_the_input_does(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [7, 7, 7], "item_id": [3, 1, 2], "position": [9, 4, 5]}).write_parquet(
        tmp_path / "p.parquet"
    )
    data = prepare(str(tmp_path / "p.parquet"), tmp_path / "positions")
    assert as_lists(data) == {"7": ["1", "2", "3"]}
    assert not data.meta["has_time"]
    assert data.sequences.timestamps is None
    (tmp_path / "q.jsonl").write_text('{"user_id":"u","item_id":"b"}\n{"user_id":"u","item_id":"a"}\n')
    assert as_lists(prepare(str(tmp_path / "q.jsonl"), tmp_path / "input")) == {"u": ["b", "a"]}


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40),
    rows=st.integers(1, 9),
    repeats=st.sampled_from(["keep", "drop"]),
)
def test_order_is_that_of_a_stable_sort_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int]], rows: int, repeats: str
) -> None:
    folder = tmp_path_factory.mktemp("order")
    path = write_csv(folder / "a.csv", [(f"u{u}", f"i{i}", 1.0, t) for u, i, t in events])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH_ROWS", rows)
        data = prepare(str(path), folder / "out", options=PrepareOptions(repeats=repeats))  # type: ignore[arg-type]
    expected: dict[str, list[str]] = {}
    for user, item, _ in sorted(events, key=lambda event: (event[0], event[2])):
        items = expected.setdefault(f"u{user}", [])
        if repeats == "keep" or f"i{item}" not in items:
            items.append(f"i{item}")
    assert as_lists(data) == expected


@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40), k=st.integers(1, 4))
def test_k_core_is_the_largest_set_where_everyone_has_k_events(pairs: list[tuple[int, int]], k: int) -> None:
    users = np.array([user for user, _ in pairs], dtype=np.uint32)
    items = np.array([item for _, item in pairs], dtype=np.uint32)
    kept = k_core(users, items, k)
    left = list(pairs)
    while True:  # remove one offender at a time: the fixpoint does not depend on the order
        user_counts, item_counts = Counter(u for u, _ in left), Counter(i for _, i in left)
        bad = next((p for p in left if user_counts[p[0]] < k or item_counts[p[1]] < k), None)
        if bad is None:
            break
        left.remove(bad)
    assert [pair for pair, stays in zip(pairs, kept, strict=True) if stays] == left


def test_more_than_one_percent_malformed_stops_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id\n" + "u,i\n" * 80 + "u,\n" + "u,i\n" * 10)
    with pytest.raises(DataError) as caught:
        prepare(str(path), tmp_path / "out")
    assert str(caught.value) == (
        f"{path}: 1 of 91 rows are malformed (1.1%, more than 1%); first: line 82: missing item: item='' user='u';"
        " mend them, or raise --max-malformed"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_few_malformed_rows_are_counted_in_the_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,item_id\n" + b"u,i\n" * 300 + b"u\xff,i\n" + b"u,\n")
    report = prepare(str(path), tmp_path / "out").meta["interactions"]
    assert report["rows"] == 302
    assert report["malformed"] == {"rows": 2, "missing item": 1, "not utf-8": 1}
    assert report["first_malformed"] == {"row": 302, "reason": "not utf-8", "content": "u�,i"}


def test_a_failed_prepare_keeps_the_dataset_that_was_there(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", EVENTS)
    first = prepare(str(path), tmp_path / "out")
    path.write_text("user_id,item_id\n,\n")
    with pytest.raises(DataError):
        prepare(str(path), tmp_path / "out")
    assert Dataset.load(tmp_path / "out").sha256 == first.sha256


def test_a_folder_that_is_not_a_dataset_is_never_replaced(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", EVENTS)
    with pytest.raises(OutputError, match="exists and is not a dataset"):
        prepare(str(path), tmp_path)
    assert path.exists()
    (tmp_path / "empty").mkdir()
    assert prepare(str(path), tmp_path / "empty").n_users == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PrepareOptions(k_core=3), r"no event is left after the filters \(3-core: 6 rows removed\); lower --k-core"),
        (PrepareOptions(minimum_rating=6), "no row is left after rating below 6: 6 rows removed"),
        (PrepareOptions(user_column="who"), "no column 'who'; it has: user_id, item_id, rating, timestamp"),
        (PrepareOptions(rating_column="stars"), "no column 'stars'"),
    ],
)
def test_an_empty_result_or_a_missing_column_is_one_clear_line(
    tmp_path: Path, options: PrepareOptions, message: str
) -> None:
    path = write_csv(tmp_path / "a.csv", EVENTS)
    with pytest.raises(DataError, match=message):
        prepare(str(path), tmp_path / "out", options=replace(options, repeats="keep"))


def test_a_minimum_rating_needs_ratings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\nu,i\n")
    with pytest.raises(DataError, match="a minimum rating needs a rating column"):
        prepare(str(tmp_path / "a.csv"), tmp_path / "out", options=PrepareOptions(minimum_rating=3))


def test_impossible_options_and_unknown_sources_are_refused(tmp_path: Path) -> None:
    for wrong in ({"k_core": 0}, {"repeats": "some"}, {"timestamp_unit": "h"}, {"minimum_rating": float("nan")}):
        with pytest.raises(ConfigError):
            PrepareOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"unknown source 'ml-10t': not a file, and none of ml-100k, ml-1m"):
        prepare("ml-10t", tmp_path / "out")
    with pytest.raises(DataError, match="ml-1m: no data; give its file or folder with --path"):
        prepare("ml-1m", tmp_path / "out")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        prepare("ml-1m", tmp_path / "out", options=replace(default_options("ml-1m"), path=tmp_path / "nowhere"))


def test_columns_delimiter_and_names_go_by_option(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("who;what;when;name;kinds\nu;1;1260000000000;One ;x|y|x\nu;2;1260000000000;;\nu;2;1;Two;\n")
    options = PrepareOptions(
        path=path,
        name="log",
        user_column="who",
        item_column="what",
        timestamp_column="when",
        title_column="name",
        categories_column="kinds",
        timestamp_unit="ms",
        delimiter=";",
    )
    data = prepare("csv", tmp_path / "out", options=options)
    assert as_lists(data) == {"u": ["2", "1"]}
    assert data.sequences.times(0).tolist() == [0, 1_260_000_000]  # type: ignore[union-attr]
    assert data.titles == ("One", "Two")
    assert data.categories == (("x", "y"), ())
    assert data.meta["name"] == "log"


def test_an_item_table_beside_the_interactions_gives_titles(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 1], "item_id": ["a", "b"]}).write_parquet(tmp_path / "interactions.parquet")
    items = pl.DataFrame({"item_id": ["b", "a", "b", "z"], "title": ["", "First", "Second", "Never met"]})
    items.write_parquet(tmp_path / "items.parquet")
    data = prepare(str(tmp_path), tmp_path / "out")
    assert data.titles == ("First", "Second")
    assert data.meta["items"]["rows"] == 4


def test_progress_is_told_in_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    prepare(str(write_csv(tmp_path / "a.csv", EVENTS)), tmp_path / "out", progress=lines.append)
    assert lines == ["read 6 rows", "sorting 6 events", "writing 5 events of 2 users and 3 items"]
