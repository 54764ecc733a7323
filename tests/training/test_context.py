"""The context of a request: its features in a data set, what is learned of them, and what of that is kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fathom.errors import ConfigError, DataError
from fathom.training.context import Context, change_of, rows_of
from fathom.training.context_fit import fit_context
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import INTERACTIONS, Contexts, Dataset, Sequences
from fathom.training.evaluate import evaluate_model
from fathom.training.metrics import Interval
from fathom.training.model import ElasticModel, ModelSettings
from fathom.training.presets import TrainSettings
from fathom.training.request_time import BUCKETS, RequestTime
from fathom.training.scorer import exit_scorer
from fathom.training.splits import leave_one_out
from fathom.training.tables import context as tables

ITEMS, USERS, EVENTS = 40, 120, 12
DEVICES = ("phone", "desktop", "tablet", "tv")
SETTINGS = TrainSettings(window=16, batch_tokens=32, targets_ahead=1)
CLICKS = [
    {"user_id": "u1", "item_id": "a", "timestamp": 1_000, "country": "DE", "hour": "1.0"},
    {"user_id": "u1", "item_id": "b", "timestamp": 1_010, "country": "", "hour": "2"},
    {"user_id": "u2", "item_id": "a", "timestamp": 1_000, "country": " FR", "hour": "3"},
    {"user_id": "u2", "item_id": "c", "timestamp": 1_030, "country": "DE", "hour": "NaN"},
    {"user_id": "u3", "item_id": "c", "timestamp": 1_000, "country": "AT", "hour": "1"},
]


def written(folder: Path, rows: list[dict[str, Any]], ending: str = "csv") -> Path:
    path, table = folder / f"clicks.{ending}", pl.DataFrame(rows)
    if ending == "parquet":
        table.write_parquet(path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.write_csv(path)
    return path


def prepared(folder: Path, rows: list[dict[str, Any]], *context: str, ending: str = "csv", **options: Any) -> Dataset:
    path = written(folder, rows, ending)
    return prepare(str(path), folder / "dataset", options=PrepareOptions(context=context, **options))


@pytest.fixture
def model() -> ElasticModel:
    torch.manual_seed(0)
    return ElasticModel(ModelSettings(width=16, heads=1, layers=2, depths=(1, 2), span=16).for_items(ITEMS)).eval()


@pytest.fixture
def told_by_device() -> Dataset:
    """On each device one of ten items of its own follows; the country tells nothing."""
    rng = np.random.default_rng(0)
    devices = rng.permuted(np.tile(np.arange(EVENTS) % 4, (USERS, 1)), axis=1)
    left = [[list(rng.permutation(10) + 10 * device) for device in range(4)] for _ in range(USERS)]
    items = np.array([left[user][device].pop() for user in range(USERS) for device in devices[user]], np.int32)
    codes = np.stack([1 + devices.ravel(), rng.integers(0, 3, items.size)], axis=1).astype(np.int32)
    contexts = Contexts({"device": DEVICES, "country": ("AT", "DE")}, codes)
    names, users = tuple(map(str, range(ITEMS))), tuple(map(str, range(USERS)))
    sequences = Sequences(items, np.arange(USERS + 1) * EVENTS, contexts=contexts)
    return Dataset(sequences, names, names, ((),) * ITEMS, users, {}, "0" * 64)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_data_set_keeps_the_features_that_it_is_told_to(tmp_path: Path, ending: str) -> None:
    data = prepared(tmp_path, CLICKS, "country", "hour", ending=ending)
    assert data.meta["context"] == {"country": ["AT", "DE", "FR"], "hour": ["1", "2", "3"]}
    assert "context: country (3 values), hour (3 values)" in data.meta["notes"]
    assert data.meta["interactions"]["columns"]["context:country"] == "country"
    contexts = data.sequences.contexts
    assert contexts is not None
    assert contexts.codes.tolist() == [[2, 1], [0, 2], [3, 3], [2, 0], [1, 1]]


def test_values_that_only_events_of_no_use_have_are_none(tmp_path: Path) -> None:
    again = {"user_id": "u1", "item_id": "a", "timestamp": 1_090, "country": "CH", "hour": "9"}
    assert prepared(tmp_path, [*CLICKS, again], "country").meta["context"] == {"country": ["AT", "DE", "FR"]}
    assert "context" not in prepared(tmp_path, CLICKS).meta
    assert prepared(tmp_path, CLICKS).sequences.contexts is None


def test_numbers_and_text_without_a_value_are_as_ids(tmp_path: Path) -> None:
    rows = [row | {"size": size} for row, size in zip(CLICKS, (1.0, 2.0, None, float("nan"), 10.0), strict=True)]
    data = prepared(tmp_path, rows, "size", ending="parquet")
    assert data.meta["context"] == {"size": ["1", "10", "2"]}
    mixed = [row | {"version": each} for row, each in zip(CLICKS, ("1.0", "1", "x", "1", "1"), strict=True)]
    assert prepared(tmp_path, mixed, "version").meta["context"] == {"version": ["1", "1.0", "x"]}


def test_the_country_of_online_retail_ii_is_read_as_any(tmp_path: Path) -> None:
    rows = [
        {"user_id": u, "item_id": i, "timestamp": n, "quantity": 1, "title": i, "country": c}
        for n, (u, i, c) in enumerate(zip("aabb", "xyxy", ("DE", "DE", "FR", "FR"), strict=True))
    ]
    table = pl.DataFrame(rows).with_columns(pl.col("timestamp").cast(pl.Datetime("us")))
    table.write_parquet(tmp_path / "shop.parquet")
    options = PrepareOptions(path=tmp_path / "shop.parquet", context=("country",))
    data = prepare("online-retail-ii", tmp_path / "dataset", options=options)
    assert data.meta["context"] == {"country": ["DE", "FR"]}


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (("nowhere",), "no column 'nowhere'; it has: user_id"),
        (("user_id",), "'user_id' cannot be both user and context; leave it out of --context"),
        (("country", "country:token"), "no column 'country:token'"),
    ],
)
def test_a_column_that_cannot_be_a_feature_is_one_clear_line(
    tmp_path: Path, context: tuple[str, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        prepared(tmp_path, CLICKS, *context)


def test_what_is_no_category_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_VALUES", 2)
    with pytest.raises(DataError, match="'country' has more than 2 different values, too many for a feature"):
        prepared(tmp_path, CLICKS, "country")
    long = [CLICKS[0] | {"country": "x" * 129}]
    with pytest.raises(DataError, match="'country' has a value of 129 bytes, at most 128"):
        prepared(tmp_path, long, "country")
    nested = [row | {"country": ["DE"]} for row in CLICKS]
    with pytest.raises(DataError, match="unusable type: context:country"):
        prepared(tmp_path, nested, "country", ending="parquet")


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (("country", ""), "different names of columns"),
        (("country", "country"), "different names of columns"),
        (tuple("abcdefghi"), "names 9 columns, at most 8"),
        (("x" * 65,), "names a column of 65 bytes, at most 64"),
        (("of\nlines",), r"a column with control characters, of\\nlines; rename it"),
    ],
)
def test_impossible_features_are_refused(context: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PrepareOptions(context=context)


def test_a_data_set_whose_places_do_not_fit_its_values_is_refused(tmp_path: Path, rehash) -> None:
    prepared(tmp_path, CLICKS, "country")
    table = pl.read_parquet(tmp_path / "dataset" / INTERACTIONS)
    for column in (pl.lit(4), pl.lit(-1), pl.lit(None), pl.lit(0.5)):
        rehash(tmp_path / "dataset", table.with_columns(column.alias("context:country")))
        with pytest.raises(DataError, match="'context:country' does not hold places among its values"):
            Dataset.load(tmp_path / "dataset")
    rehash(tmp_path / "dataset", table.drop("context:country"))
    with pytest.raises(DataError, match="'context:country' does not hold places among its values"):
        Dataset.load(tmp_path / "dataset")


@pytest.mark.parametrize("values", [["country"], {"country": "DE"}, {"country": [1, 2, 3]}, {"country": {"DE": 1}}])
def test_a_data_set_whose_values_are_no_texts_is_refused(tmp_path: Path, values: object) -> None:
    prepared(tmp_path, CLICKS, "country")
    file = tmp_path / "dataset" / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"context": values}))
    with pytest.raises(DataError, match=r"meta\.json: context is not a list of texts for each feature; prepare"):
        Dataset.load(tmp_path / "dataset")


@pytest.fixture
def rehash():
    from fathom.files import sha256_file

    def write(folder: Path, table: pl.DataFrame) -> None:
        table.write_parquet(folder / INTERACTIONS)
        meta = json.loads((folder / "meta.json").read_text())
        meta["sha256"][INTERACTIONS] = sha256_file(folder / INTERACTIONS)
        (folder / "meta.json").write_text(json.dumps(meta))

    return write


def test_a_case_is_asked_in_the_context_of_its_target(told_by_device: Dataset) -> None:
    cut, whole = leave_one_out(told_by_device), told_by_device.sequences
    for cases, back in ((cut.test, 1), (cut.validation, 2)):
        assert cases.histories.asked_contexts.codes.tolist() == whole.contexts.codes[whole.offsets[1:] - back].tolist()
    some = cut.test.select(np.array([3, 1])).histories
    assert some.asked_contexts.codes.tolist() == cut.test.histories.asked_contexts.codes[[3, 1]].tolist()
    assert some.contexts.codes.tolist() == [
        *whole.contexts.codes[3 * EVENTS : 4 * EVENTS - 1].tolist(),
        *whole.contexts.codes[EVENTS : 2 * EVENTS - 1].tolist(),
    ]


def test_values_are_found_by_their_text_and_any_other_counts_as_missing() -> None:
    asked = Contexts({"a": ("x", "y"), "b": ("z",)}, np.array([[1, 1], [2, 0], [0, 1]], np.int32))
    rows = rows_of(asked, {"b": ("w", "z"), "c": ("z",), "a": ("y",)})
    assert rows.tolist() == [[2, 0, 0], [0, 0, 4], [2, 0, 0]]
    changes = np.eye(4, dtype=np.float32)
    assert change_of(rows, changes).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert change_of(torch.from_numpy(rows), torch.from_numpy(changes)).tolist() == change_of(rows, changes).tolist()


def test_what_a_feature_tells_is_learned_and_helps(model: ElasticModel, told_by_device: Dataset) -> None:
    cut, before = leave_one_out(told_by_device), {k: v.clone() for k, v in model.state_dict().items()}
    found = fit_context(model, SETTINGS, cut)
    assert found is not None
    assert found.values["device"] == DEVICES
    assert 0 < found.gain.low < found.gain.high
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = evaluate_model(model, told_by_device, cut, context=found, baselines=())
    for depth in (1, 2):
        names = f"depth {depth}", f"depth {depth} without context"
        told, plain = (report.systems[name].metrics["ndcg@10"].value for name in names)
        assert told > 1.3 * plain


def test_the_same_model_gives_the_same_changes(model: ElasticModel, told_by_device: Dataset) -> None:
    first, again = (fit_context(model, SETTINGS, leave_one_out(told_by_device)) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.changes.tobytes() == again.changes.tobytes()


def test_it_is_learned_on_top_of_the_time_of_a_request(model: ElasticModel, told_by_device: Dataset) -> None:
    sequences = told_by_device.sequences
    times = np.tile(np.arange(EVENTS) * 60 + 1_000_000_000, USERS)
    timed = replace(told_by_device, sequences=replace(sequences, timestamps=times))
    moves = RequestTime(np.random.default_rng(0).normal(size=(BUCKETS, 2, 16)).astype(np.float32), Interval(0, 0, 0))
    cut = leave_one_out(timed)
    alone, beside = fit_context(model, SETTINGS, cut), fit_context(model, SETTINGS, cut, moves)
    assert alone is not None
    assert beside is not None
    assert not np.allclose(alone.changes, beside.changes)
    report = evaluate_model(model, timed, cut, request_time=moves, context=beside, baselines=())
    assert [name for name in report.systems if name.startswith("depth 1")] == [
        "depth 1",
        "depth 1 untimed",
        "depth 1 without context",
    ]
    told, plain = (report.systems[f"depth 1{end}"].metrics["ndcg@10"].value for end in ("", " without context"))
    assert told > 1.3 * plain


def test_a_value_that_was_hardly_ever_seen_changes_nothing(model: ElasticModel, told_by_device: Dataset) -> None:
    contexts = told_by_device.sequences.contexts
    codes = contexts.codes.copy()
    codes[::300, 0] = 5
    values = contexts.values | {"device": (*DEVICES, "fridge")}
    sequences = replace(told_by_device.sequences, contexts=Contexts(values, codes))
    found = fit_context(model, SETTINGS, leave_one_out(replace(told_by_device, sequences=sequences)))
    assert found is not None
    assert found.values["device"] == DEVICES
    assert len(found.changes) == sum(map(len, found.values.values()))


def test_without_features_or_where_they_tell_nothing_there_is_none(
    model: ElasticModel, told_by_device: Dataset
) -> None:
    sequences = told_by_device.sequences
    bare = replace(told_by_device, sequences=replace(sequences, contexts=None))
    assert fit_context(model, SETTINGS, leave_one_out(bare)) is None
    off = SETTINGS.model_copy(update={"context": "off"})
    assert fit_context(model, off, leave_one_out(told_by_device)) is None
    codes = np.random.default_rng(1).permutation(sequences.contexts.codes)
    chance = replace(sequences, contexts=Contexts(sequences.contexts.values, codes))
    assert fit_context(model, SETTINGS, leave_one_out(replace(told_by_device, sequences=chance))) is None
    empty = replace(sequences, contexts=Contexts({"device": ()}, np.zeros((len(sequences.items), 1), np.int32)))
    assert fit_context(model, SETTINGS, leave_one_out(replace(told_by_device, sequences=empty))) is None


def test_a_request_whose_context_is_unknown_gets_what_it_would_without(
    model: ElasticModel, told_by_device: Dataset
) -> None:
    changes = np.random.default_rng(0).normal(size=(4, 2, 16)).astype(np.float32)
    context = Context({"device": DEVICES}, changes, Interval(0.1, 0.0, 0.2))
    histories = leave_one_out(told_by_device).test.histories
    plain, told = exit_scorer(model)(histories), exit_scorer(model, "cpu", None, context)(histories)
    assert np.abs(told["depth 1"] - plain["depth 1"]).max() > 0.1
    asked = histories.asked_contexts
    others = Contexts({"device": ("a", "b", "c", "d"), "country": ("AT", "DE")}, asked.codes)
    for unknown in (None, replace(asked, codes=np.zeros_like(asked.codes)), others):
        found = exit_scorer(model, "cpu", None, context)(replace(histories, asked_contexts=unknown))
        assert found["depth 1"].tobytes() == plain["depth 1"].tobytes()
