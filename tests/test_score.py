"""`fathom score` answers every user as a server does, whole or not at all, and goes on where it was stopped."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from in_process import fathom

from fathom.artefacts import RECOMMENDATIONS, score_parts
from fathom.client import Client
from fathom.errors import BundleEditedError, ConfigError, DataError, UnavailableError
from fathom.exporter.certification.certify import write_certificate
from fathom.local import running_server
from fathom.pieces import Piece as PieceOf
from fathom.pieces import PieceRunner, one_after_the_other, over_processes, over_ray
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import Learned
from fathom.tools.scoring import histories
from fathom.tools.scoring.answers import NOT_FOUND, ScoreOptions, Work, score_piece
from fathom.tools.scoring.score import Summary, score
from fathom.training.data import prepare

ITEMS, USERS, MAX_HISTORY = 50, 40, 20


def made_histories(seed: int = 0) -> list[tuple[list[str], list[int]]]:
    """Items and seconds of users with 1 to 30 items, some of which repeat."""
    rng = np.random.default_rng(seed)
    found = []
    for user in range(USERS):
        length = 1 + user % 30
        times = 1_700_000_000 + np.cumsum(rng.integers(60, 86_400, length))
        found.append(([f"item-{item}" for item in rng.integers(ITEMS, size=length)], times.tolist()))
    return found


def write_lists(path: Path, users: Sequence[tuple[list[str], list[int]]], *, timed: bool = True) -> Path:
    table = pl.DataFrame(
        {
            "user_id": [f"u{number:02d}" for number in range(len(users))],
            "item_ids": pl.Series([items for items, _ in users], dtype=pl.List(pl.String)),
            "timestamps": pl.Series([times for _, times in users], dtype=pl.List(pl.Int64)),
        }
    )
    table = table if timed else table.drop("timestamps")
    table.write_ndjson(path) if path.suffix == ".jsonl" else table.write_parquet(path)
    return path


def write_events(path: Path, users: Sequence[tuple[list[str], list[int]]]) -> Path:
    rows = ["user_id,item_id,timestamp"]
    rows += [f"u{n:02d},{i},{t}" for n, pair in enumerate(users) for i, t in zip(*pair, strict=True)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    return write_lists(tmp_path / "users.parquet", made_histories())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "LEAST_USERS", 8)


@pytest.fixture(scope="module")
def timed_bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(timestamps=True)


@pytest.fixture(scope="module")
def counted_bundle(make_bundle: Callable[..., Path]) -> Path:
    """With a counting exit that has a say at every depth."""
    return make_bundle(counting_weight=0.3)


@pytest.fixture(scope="module")
def routed_bundle(certified_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certified for a learned routing, which expects less to be lost where the items are popular."""
    path = tmp_path_factory.mktemp("routed") / "bundle"
    shutil.copytree(certified_bundle, path)
    bundle = Bundle.open(path)
    assert bundle.certificate is not None
    asked = np.random.default_rng(5).integers(ITEMS, size=(120, 12))
    features = np.array([bundle.inspect(items, None)[0] for items in asked])
    popular = features[:, Features._fields.index("popularity")]
    losses = ((popular.max() - popular) / np.ptp(popular))[:, None] * (1.0, 0.6, 0.25)
    routing = Learned("learned", bundle.depths, 0.5, (0.25, 0.5, 0.75, 1.0), LossModel.fit(features, losses))
    claim = replace(bundle.certificate.claims[0], policy="learned", routing=routing)
    write_certificate(bundle, replace(bundle.certificate, claims=(claim,)))
    return path


def run(bundle: Path, users: Path, out: Path, **more: Any) -> tuple[pl.DataFrame, Summary]:
    names = ScoreOptions.__dataclass_fields__
    options = ScoreOptions(**{name: value for name, value in more.items() if name in names})
    summary = score(bundle, users, out, options, **{name: value for name, value in more.items() if name not in names})
    return pl.read_parquet(out), summary


@pytest.mark.parametrize(
    ("bundle", "options"),
    [
        ("synthetic_bundle", {}),
        ("synthetic_bundle", {"depth": 8, "k": 3}),
        ("synthetic_bundle", {"policy": "deepest", "include_seen": True, "k": 60}),
        ("synthetic_bundle", {"profile": "mobile"}),
        ("timed_bundle", {"policy": "rule"}),
        ("certified_bundle", {"policy": "certified"}),
        ("routed_bundle", {}),
        ("counted_bundle", {}),
    ],
)
def test_it_answers_as_a_server_does(
    bundle: str, options: dict[str, Any], lists: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(bundle)
    table, _ = run(path, lists, tmp_path / "recs.parquet", **options)
    if bundle in ("certified_bundle", "routed_bundle"):
        assert table["depth"].n_unique() > 1
    served = {name: str(options[name]) for name in ("policy", "profile") if name in options}
    flags = [part for name, value in served.items() for part in (f"--{name}", value)]
    with running_server(path, *flags, "--feedback-share", "0") as server, Client(server.address) as client:
        for (items, times), row in zip(made_histories(), table.iter_rows(named=True), strict=True):
            answer = client.recommend(
                items,
                timestamps=times,
                k=options.get("k", 10),
                depth=options.get("depth"),
                include_seen=options.get("include_seen", False),
                timeout_s=60,
            )
            assert row["item_ids"] == [item.id for item in answer.items]
            assert (row["depth"], row["reason"]) == (answer.depth, answer.reason)
            np.testing.assert_allclose(row["scores"], [item.score for item in answer.items], atol=1e-6)


def test_datasets_events_and_lists_of_the_same_histories_give_the_same_answers(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    unique = [([*dict.fromkeys(items)], times[: len(set(items))]) for items, times in made_histories()]
    events = write_events(tmp_path / "events.csv", unique)
    prepare(str(events), tmp_path / "dataset")
    inputs = [
        write_lists(tmp_path / "users.parquet", unique),
        write_lists(tmp_path / "users.jsonl", unique),
        events,
        tmp_path / "dataset",
    ]
    tables = [run(synthetic_bundle, path, tmp_path / "recs.parquet")[0] for path in inputs]
    assert tables[0].schema == pl.Schema(
        {
            "user_id": pl.String,
            "item_ids": pl.List(pl.String),
            "scores": pl.List(pl.Float32),
            "depth": pl.Int32,
            "reason": pl.String,
        }
    )
    assert all(table.equals(tables[0]) for table in tables)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of a start of Ray that took too long
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "runner", [over_processes(2), pytest.param(over_ray(), marks=pytest.mark.slow)], ids=["processes", "ray"]
)
def test_wherever_it_runs_the_answers_are_the_same(
    synthetic_bundle: Path, lists: Path, tmp_path: Path, runner: PieceRunner
) -> None:
    alone, _ = run(synthetic_bundle, lists, tmp_path / "alone.parquet")
    shared, _ = run(synthetic_bundle, lists, tmp_path / "shared.parquet", runner=runner)
    assert shared.equals(alone)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_clear_line(synthetic_bundle: Path, lists: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^cannot use the Ray cluster at nonsense://here: [^\n]+$"):
        run(synthetic_bundle, lists, tmp_path / "recs.parquet", runner=over_ray("nonsense://here"))


def stopped_after(pieces: int) -> PieceRunner:
    """Fails as an interrupted run does once so many pieces are there."""

    def runner(function: Any, shared: Any, work: Sequence[PieceOf]) -> Any:
        yield from one_after_the_other(function, shared, work[:pieces])
        raise KeyboardInterrupt

    return runner


@pytest.mark.usefixtures("small_pieces")
def test_an_interrupted_run_goes_on_where_it_stopped(synthetic_bundle: Path, lists: Path, tmp_path: Path) -> None:
    whole, _ = run(synthetic_bundle, lists, tmp_path / "whole.parquet")
    out, notes = tmp_path / "recs.parquet", []
    with pytest.raises(KeyboardInterrupt):
        run(synthetic_bundle, lists, out, runner=stopped_after(3))
    assert not out.exists()
    table, summary = run(synthetic_bundle, lists, out, note=notes.append)
    assert table.equals(whole)
    assert (summary.users, summary.resumed_users, notes) == (USERS, 24, [])
    assert not score_parts(out).exists()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("other", ["users", "options", "bundle"])
def test_parts_of_other_work_are_not_used(
    other: str, synthetic_bundle: Path, timed_bundle: Path, lists: Path, tmp_path: Path
) -> None:
    out, notes = tmp_path / "recs.parquet", []
    with pytest.raises(KeyboardInterrupt):
        run(synthetic_bundle, lists, out, runner=stopped_after(3))
    bundle = timed_bundle if other == "bundle" else synthetic_bundle
    users = write_lists(tmp_path / "others.parquet", made_histories(1)) if other == "users" else lists
    options = {"k": 5} if other == "options" else {}
    table, summary = run(bundle, users, out, note=notes.append, **options)
    assert table.equals(run(bundle, users, tmp_path / "afresh.parquet", **options)[0])
    assert summary.resumed_users == 0
    (words,) = notes
    assert words.endswith(f"with other {other}; starting again")


def test_unknown_items_are_left_out_and_a_user_without_known_ones_has_no_answer(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    users = [(["item-1", "elsewhere", "item-2"], [1, 2, 3]), (["elsewhere"], [1]), ([], [])]
    path = write_lists(tmp_path / "users.parquet", users)
    table, summary = run(synthetic_bundle, path, tmp_path / "recs.parquet", depth=4)
    known = write_lists(tmp_path / "known.parquet", [(["item-1", "item-2"], [1, 3])])
    assert table[:1].equals(run(synthetic_bundle, known, tmp_path / "known-recs.parquet", depth=4)[0])
    assert table["reason"].to_list()[1:] == [NOT_FOUND, NOT_FOUND]
    assert table["depth"].to_list()[1:] == [None, None]
    assert table["item_ids"].to_list()[1:] == [[], []]
    assert (summary.unknown_items, summary.users, sum(summary.depths.values())) == (2, 3, 1)


def test_depth_0_and_strangers_are_answered_by_counting(counted_bundle: Path, lists: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(counted_bundle)
    assert bundle.counting is not None
    table, summary = run(counted_bundle, lists, tmp_path / "recs.parquet", depth=0)
    for (items, _), row in zip(made_histories(), table.iter_rows(named=True), strict=True):
        seen = np.array([bundle.catalogue.index[item] for item in items])
        found, scores = bundle.counting.best(seen[-MAX_HISTORY:], 10, ItemFilter(exclude=seen))
        assert row["item_ids"] == [bundle.catalogue.ids[index] for index in found]
        assert row["scores"] == scores.tolist()
    assert (summary.depths, summary.reasons) == ({"0": USERS}, {"fixed": USERS})
    strangers = write_lists(tmp_path / "strangers.parquet", [(["elsewhere"], [1]), ([], [])])
    table, summary = run(counted_bundle, strangers, tmp_path / "recs.parquet", k=3)
    assert table["item_ids"].to_list() == [["item-0", "item-1", "item-2"]] * 2
    assert (summary.depths, summary.reasons) == ({"0": 2}, {"popular": 2})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"item_ids": [["a"]]}, "no column user_id"),
        ({"user_id": ["u"], "item_ids": ["a"]}, "no table of user_id, lists item_ids"),
        ({"user_id": ["u"], "item_ids": [["a", None]]}, "a value is missing in item_ids"),
        ({"user_id": [None], "item_ids": [["a"]]}, "a value is missing in user_id"),
        ({"user_id": ["u", "v"], "item_ids": [["a"], ["b"]], "timestamps": [[1], [1, 2]]}, "row 2 has other numbers"),
        ({"user_id": ["u", "v"], "item_ids": [["a"], ["b", "c"]], "timestamps": [[5], [4, 3]]}, "of row 2 fall"),
        ({"user_id": ["u"], "item_ids": [["a"]], "timestamps": [[1_700_000_000_000]]}, "are seconds since 1970"),
        ({"user_id": [], "item_ids": []}, "no user in it"),
    ],
)
def test_a_table_of_lists_that_cannot_be_used_is_one_line(
    table: dict[str, Any], words: str, synthetic_bundle: Path, tmp_path: Path
) -> None:
    schema = {"item_ids": pl.List(pl.String)} if not table.get("user_id", True) else {}
    pl.DataFrame(table, schema_overrides=schema).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=words) as caught:
        run(synthetic_bundle, tmp_path / "users.parquet", tmp_path / "recs.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 5}, "no depth 5; the bundle has .*16"),
        ({"policy": "certified"}, "nothing is certified"),
        ({"profile": "nowhere"}, "nowhere"),
    ],
)
def test_impossible_options_are_refused_before_any_work(
    options: dict[str, Any], words: str, synthetic_bundle: Path, lists: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(synthetic_bundle, lists, tmp_path / "recs.parquet", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["users.parquet"]


def test_a_bundle_that_was_exchanged_meanwhile_is_refused(synthetic_bundle: Path) -> None:
    piece = histories.Piece(0, np.array([1]), np.array([0, 1]), None)
    with pytest.raises(BundleEditedError, match="no longer version"):
        score_piece(Work(synthetic_bundle, "0" * 12, ScoreOptions()), piece)


def dies(_: None, __: int) -> None:
    import os

    os._exit(9)


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(UnavailableError, match="fewer --workers"):
        list(over_processes(2)(dies, None, [1, 2]))


def test_the_command_tells_what_it_wrote_and_replaces_only_that(
    synthetic_bundle: Path, lists: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recs.parquet"
    command = ("score", synthetic_bundle, "--users", lists, "--out", out, "--workers", "1")
    for _ in range(2):
        told = json.loads(fathom(*command, "--json").stdout)
    assert told["users"] == sum(told["depths"].values()) == sum(told["reasons"].values()) == USERS
    assert RECOMMENDATIONS.is_at(out)
    assert "users/s" in fathom(*command).stdout
    mine = pl.DataFrame({"user_id": ["a"]})
    mine.write_parquet(out)
    assert "not recommendations" in fathom(*command, code=2).stderr
    assert pl.read_parquet(out).equals(mine)
