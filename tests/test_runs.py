"""Runs are kept in one file, shown, compared, exported, and ordered into a leaderboard."""

import csv
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fathom.cli import app
from fathom.errors import ArtefactError, ConfigError, FathomError
from fathom.runs import VARIABLE, RunRecord, Runs, record
from fathom.serving.config import load_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kept" / "runs.sqlite"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def run(model: str = "a", accuracy: float = 0.5, **more: float) -> RunRecord:
    config = {"ratio": accuracy, "seed": 0}
    return RunRecord("compress", "classification", model, "x.csv", {"accuracy": accuracy, **more}, config, ["small"])


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(found, FathomError)
    return str(found)


def test_what_is_kept_comes_back_as_it_was(file: Path) -> None:
    assert record(run()) is None
    assert record(run("b", 0.7, loss=0.25)) is None
    first, second = Runs(file).all()
    assert (first.number, second.number) == (1, 2)
    assert second.metrics == {"accuracy": 0.7, "loss": 0.25}
    assert second.config == {"ratio": 0.7, "seed": 0}
    assert second.outputs == ["small"]
    assert first.created.endswith("+00:00")
    assert first.version
    assert Runs(file).get(2) == second
    with pytest.raises(ConfigError, match="no run has the number 3"):
        Runs(file).get(3)


def test_many_programs_add_at_once_and_nothing_is_lost(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: record(run(accuracy=n / 64)), range(64))) == {None}
    assert sorted(each.metrics["accuracy"] for each in Runs(file).all()) == [n / 64 for n in range(64)]


def test_a_file_that_is_not_ours_is_not_touched_and_no_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as theirs:
        theirs.execute("create table runs (x)")
    theirs.close()
    before = other.read_bytes()
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and longer than its head " * 40)
    for path, why in ((other, "not a file of Fathom's runs"), (text, "cannot be read as runs"), (tmp_path, "opened")):
        monkeypatch.setenv(VARIABLE, str(path))
        assert why in str(record(run()))
    assert other.read_bytes() == before
    with pytest.raises(ArtefactError, match="not a file of Fathom's runs"):
        Runs(other).all()
    monkeypatch.setenv(VARIABLE, "")
    assert record(run()) is None
    assert "FATHOM_RUNS is empty" in refused("runs", "list")
    assert "no runs are kept here" in refused("runs", "list", "--file", tmp_path / "missing.sqlite")


def test_no_run_is_lost_that_starts_while_another_makes_the_file(file: Path) -> None:
    file.parent.mkdir()
    # One that was killed before it had written anything.
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("begin immediate")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(record, run(accuracy=n / 4)) for n in range(4)]
        other.execute("rollback")
        other.close()
        assert [each.result() for each in waiting] == [None] * 4
    assert len(Runs(file).all()) == 4


def test_what_cannot_be_kept_or_read_is_one_line(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metrics, config in (({"loss": float("nan")}, {}), ({}, {"path": tmp_path}), ({}, {"name": "\udc80"})):
        said = str(record(RunRecord("rank", "classification", "\udc80", "b", metrics, config, [])))
        assert said.startswith("this run is not kept: ")
    assert record(run()) is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "out" / "runs.sqlite"))
    (tmp_path / "out").mkdir()
    inside = RunRecord("rank", "classification", "a", "b", {}, {}, [str(tmp_path / "out")])
    assert "lies inside what the command wrote" in str(record(inside))
    assert list((tmp_path / "out").iterdir()) == []
    with sqlite3.connect(file) as damaged:
        damaged.execute("update runs set config = '{'")
    damaged.close()
    assert "cannot be read as runs" in refused("runs", "list", "--file", file)
    with sqlite3.connect(file) as later:
        later.execute("pragma user_version = 9")
    later.close()
    assert "another version of Fathom" in refused("runs", "list", "--file", file)


@pytest.mark.usefixtures("file")
def test_runs_are_listed_shown_compared_and_exported(tmp_path: Path) -> None:
    record(run("a", 0.5))
    record(run("b", 0.7, loss=0.25))
    record(RunRecord("train", "recommendation", "c", "d", {}, {}, []))
    listed = call("runs", "list", "--task", "classification")
    assert "accuracy 0.7000" in listed
    assert "recommendation" not in listed
    assert len(json.loads(call("runs", "list", "--command", "train", "--json"))) == 1
    shown = call("runs", "show", "2")
    assert "loss" in shown
    assert "0.2500" in shown
    compared = call("runs", "compare", "1", "2")
    assert "ratio" in compared
    assert "seed" not in compared
    call("runs", "export", "--out", tmp_path / "runs.csv")
    call("runs", "export", "--out", tmp_path / "runs.csv")
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [row["accuracy"] for row in rows] == ["0.5", "0.7", ""]
    call("runs", "export", "--out", tmp_path / "runs.json")
    assert [each["model"] for each in json.loads((tmp_path / "runs.json").read_text())["runs"]] == ["a", "b", "c"]
    assert "as .json or .csv" in refused("runs", "export", "--out", tmp_path / "runs.txt")


@pytest.mark.usefixtures("file")
def test_a_leaderboard_has_each_model_once_the_best_first(tmp_path: Path) -> None:
    for model, accuracy in (("a", 0.5), ("b <i>", 0.9), ("a", 0.7), ("c", 0.6)):
        record(run(model, accuracy, loss=1 - accuracy))
    found = json.loads(call("leaderboard", "--task", "classification", "--json"))
    assert [(each["model"], each["metrics"]["accuracy"]) for each in found] == [("b <i>", 0.9), ("a", 0.7), ("c", 0.6)]
    page = tmp_path / "best.html"
    printed = call("leaderboard", "--task", "classification", "--metric", "loss", "--page", page)
    assert printed.index("b <i>") < printed.index("0.4000")
    assert "b &lt;i&gt;" in page.read_text()
    assert "<i>" not in page.read_text()
    assert "there are accuracy, loss" in refused("leaderboard", "--task", "classification", "--metric", "speed")
    assert "has a metric" in refused("leaderboard", "--task", "chess")


def test_a_server_takes_the_variable_for_no_setting() -> None:
    assert load_settings(environment={VARIABLE: "runs.sqlite"}) == load_settings(environment={})


@pytest.mark.usefixtures("file")
def test_tensorboard_reads_metrics_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(run(accuracy=0.5, loss=0.25))
    record(run("b", 0.75))
    for _ in range(2):  # a folder of its own is replaced
        call("runs", "tensorboard", "--out", tmp_path / "board")
    assert {path.name for path in (tmp_path / "board").iterdir()} == {"runs.json", "run-1", "run-2"}
    events = EventAccumulator(str(tmp_path / "board" / "run-1"))
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {"accuracy": 0.5, "loss": 0.25}
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
