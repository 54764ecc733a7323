"""A stored run says what was run, on what, and names no machine."""

import json
import re
from pathlib import Path

import pytest

from fathom.benchmarks.record import RESULTS, run, save_run
from fathom.errors import ConfigError, OutputError


def test_a_run_is_stored_with_what_its_figures_depend_on(tmp_path: Path) -> None:
    path = save_run("speed", config={"threads": 1}, result={"median_us": 2.5}, seed=3, command=["run"], folder=tmp_path)
    assert path == tmp_path / "speed.json"
    run = json.loads(path.read_text())
    assert run["result"] == {"median_us": 2.5}
    assert run["config"] == {"threads": 1}
    assert run["seed"] == 3
    assert run["command"] == ["run"]
    assert set(run["machine"]) == {"cpu", "cores", "memory_gb", "load_1min", "system", "python"}
    assert run["versions"]["fathom-recommender"] == "0.1.0"
    assert {"name", "created", "commit", "schema_version"} <= set(run)


def test_a_run_names_neither_the_machine_nor_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = f"ml-100k={Path.cwd() / 'build' / 'bundle'}:{tmp_path / 'dataset'}"
    given = [within, f"--out={tmp_path / 'out'}", str(Path.cwd() / "build"), str(tmp_path / "elsewhere"), "--k=3"]
    monkeypatch.setattr("sys.argv", ["program.py", *given])
    text = save_run("speed", config={}, result={}, folder=tmp_path).read_text()
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text
    told = ["ml-100k=build/bundle:dataset", "--out=out", "build", "elsewhere", "--k=3"]
    assert json.loads(text)["command"][-5:] == told


def test_no_stored_run_names_a_folder_of_the_machine_that_it_ran_on() -> None:
    stored = list(RESULTS.rglob("*.json"))
    assert stored
    for path in stored:
        parts = [part for each in json.loads(path.read_bytes())["command"] for part in re.split("[=:]", each)]
        assert not any(Path(part).is_absolute() for part in parts), path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1, 2}])
def test_what_is_not_json_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be stored as JSON"):
        save_run("speed", config={}, result={"value": value}, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_replaces_an_older_run_and_nothing_else(tmp_path: Path) -> None:
    for speed in (1, 2):
        path = save_run("speed", config={}, result={"speed": speed}, folder=tmp_path)
    assert json.loads(path.read_text())["result"] == {"speed": 2}
    path.write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="not a stored run"):
        save_run("speed", config={}, result={}, folder=tmp_path)
    assert path.read_text() == '{"mine": 1}'


def test_a_mistake_of_the_users_ends_a_benchmark_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("no such thing; do that")

    with pytest.raises(SystemExit) as ended:
        run(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such thing; do that\n"
