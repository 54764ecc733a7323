"""The command line as a person meets it: help with examples, results as tables or JSON, mistakes in one line."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from in_process import fathom
from typer.testing import CliRunner

from fathom import DISTRIBUTION
from fathom.cli import app
from fathom.errors import FathomError

COMMANDS = [
    *(
        "train",
        "evaluate",
        "layers",
        "rank",
        "compress",
        "stability",
        "plan",
        "heal",
        "export",
        "certify",
        "build",
        "score",
        "serve",
        "key",
        "reload",
        "recommend",
        "demo",
        "loadtest",
        "console",
        "capacity",
        "doctor",
    ),
    *("data prepare", "bundle inspect", "bundle verify", "bundle slice", "bundle convert", "bundle quality"),
    *("bundle keygen", "bundle sign", "bundle index"),
    *("profiles list", "profiles show", "profiles check", "profiles merge", "history import"),
    *("items import", "items list", "items remove"),
    *("experiments report", "experiments status", "experiments start"),
    *("experiments stop", "experiments promote"),
    *("runs list", "runs show", "runs compare", "runs export", "runs tensorboard", "leaderboard"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: fathom {command}" in result.output


def test_the_program_says_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"fathom {version(DISTRIBUTION)}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_on_a_terminal_of_eighty_columns(command: str) -> None:
    printed = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"}).output
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_no_command_is_forgotten_here() -> None:
    group = typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundle", "inspect", "nowhere"], "nowhere: no bundle here"),
        (["bundle", "convert", "nowhere", "--to", "ort", "--out", "x"], "nowhere: no bundle here"),
        (["bundle", "convert", "nowhere", "--to", "executorch", "--out", "x"], "executorch needs --checkpoint"),
        (["serve", "nowhere", "--port", "0"], "nowhere: no bundle here"),
        (["serve", "nowhere", "--max-queue", "0"], "--max-queue"),
        (["data", "prepare", "nowhere.csv", "--out", "x"], "nowhere.csv"),
        (["train", "nowhere", "--out", "x"], "nowhere"),
        (["train", "nowhere", "--out", "x", "--set", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["train", "nowhere", "--out", "x", "--preset", "ml-10k"], "did you mean ml-100k?"),
        (["rank", "nowhere", "--data", "y", "--out", "x", "--lattice-plot", "z.png"], "give --lattice FOLDER"),
        (["rank", "nowhere", "--data", "y", "--out", "x", "--methods", "auto", "--budget", "1h"], "--budget 1h"),
        (["rank", "nowhere", "--data", "y", "--out", "x", "--budget", "0s"], "--budget 0s: a time above 0"),
        (["capacity", "nowhere"], "give --users and --requests-per-day, or --measure"),
        (["capacity", "nowhere", "--users", "many", "--requests-per-day", "1"], "--users many: a number above 0"),
        (["capacity", "nowhere", "--users", "5"], "--users and --requests-per-day belong together"),
        (["capacity", "nowhere", "--users", "10M", "--requests-per-day", "1"], "nowhere: no bundle here"),
        (["stability", "nowhere.json", "other.json"], "nowhere.json"),
        (["plan", "nowhere.json", "--out", "x"], "nowhere.json"),
        (["plan", "nowhere.json", "--depths", "four", "--out", "x"], "--depths four"),
        (["plan", "nowhere.json"], "--out is missing"),
        (["plan", "nowhere.json", "--compare"], "--compare needs --lattice FOLDER"),
        (["plan", "nowhere.json", "--compare", "--lattice", "x", "--out", "y"], "--compare writes no plan"),
        (["plan", "nowhere.json", "--lattice", "x", "--out", "y"], "the permuted-prefix plan reads no lattice"),
        (["build", "nowhere.csv", "--out", "x/bundle"], "nowhere.csv"),
        (["score", "nowhere", "--users", "y", "--out", "x.parquet"], "nowhere: no bundle here"),
        (["profiles", "show", "jetson-nona"], "jetson-nano"),
        (["recommend", "--target", "127.0.0.1:1", "--items", "1"], "127.0.0.1:1"),
        (["loadtest", "--trace", "nowhere.jsonl"], "nowhere.jsonl"),
        (["console", "--host", "0.0.0.0"], "--host 0.0.0.0: the console has no login"),
        (["console", "--port", "0", "--metrics-url", "metrics"], "--metrics-url metrics: give an address"),
        (["experiments", "report", "nowhere"], "nowhere: no experiment's log here"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fathom(*arguments, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "--target", "127.0.0.1", "--items", "1"], "target '127.0.0.1' has no port"),
        (["recommend", "--items", "1", "--timestamps", "1e9"], "--timestamps 1e9: give whole seconds since 1970"),
        (["recommend", "--items", "1", "--timestamps", 5_000 * "9"], "999...: give whole seconds since 1970"),
        (["recommend", "--items", "1", "--cap", "Drama"], "--cap Drama: give CATEGORY=N, as Drama=2"),
        (["recommend", "--items", "1", "--context", "DE"], "--context DE: give FEATURE=VALUE, as country=DE"),
        (["recommend", "--context", "a=1", "--context", "a=2"], "--context names a twice; give it once"),
        (["reload", "--target", "http://127.0.0.1:1"], "is not host:port"),
        (["loadtest", "--trace", "x", "--ca", "nowhere.pem"], "nowhere.pem: no such file"),
        (["recommend", "--items", "1", "--metadata", "key"], "--metadata needs a key and a value"),
        (["reload", "--cert", "x.pem"], "a client's certificate and its key belong together"),
    ],
)
def test_a_server_that_cannot_be_reached_so_is_refused_before_anything_else(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, arguments).exception
    assert isinstance(found, FathomError)
    assert message in str(found)
    assert len(str(found).splitlines()) == 1


def test_the_program_itself_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fathom", "bundle", "inspect", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_bundle_fails_verify_by_name(synthetic_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    fathom("bundle", "slice", synthetic_bundle, "--profile", "mobile", "--any-precision", "--out", broken)
    assert json.loads(fathom("bundle", "verify", broken, "--json").stdout)[0]["ok"]
    (broken / "items" / "vectors.npy").write_bytes(b"edited")
    assert "items/vectors.npy" in fathom("bundle", "verify", broken, code=2).stdout


def test_a_profile_of_ones_own_is_checked_with_the_line_of_each_mistake(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntier: edge\nthresold: 0.5\n")
    assert "mine.yaml:3" in fathom("profiles", "check", path, code=2).stdout


def test_doctor_starts_what_it_lists() -> None:
    assert json.loads(fathom("doctor", "--json").stdout)["CPUExecutionProvider"] == "starts"
