"""The short form runs real benchmarks one by one, and ends in one table."""

import sys
from pathlib import Path

import pytest

from fathom.benchmarks import registry, short
from fathom.errors import ConfigError, FathomError

START = short.Short("server_start", ("--repetitions", "1"), 5, short.of_start)
BROKEN = short.Short("front", ("--no-such-option",), 1, short.of_front)


def test_what_is_measured_stands_in_one_table_and_what_failed_is_named(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "bench"
    monkeypatch.setattr(short, "SHORT", (START, BROKEN))
    monkeypatch.setattr(sys, "argv", ["short", str(synthetic_bundle), "--data", "nowhere", "--results", str(results)])
    with pytest.raises(FathomError, match="front failed"):
        short.main()
    page = (results / short.PAGE).read_text()
    assert "| server_start: seconds from start to ready | **Fathom** " in page
    said = capsys.readouterr().out
    assert said.startswith("2 benchmarks in short, about 0 minutes")
    assert "1/2 server_start, about 5 s\n" in said
    assert page.strip() in said


def test_published_runs_are_not_overwritten(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["short", str(synthetic_bundle), "--data", "d", "--results", "results"])
    with pytest.raises(ConfigError, match="holds what is published"):
        short.main()


@pytest.mark.parametrize("each", short.SHORT, ids=lambda each: each.name)
def test_every_command_is_one_that_the_registry_knows(each: short.Short, tmp_path: Path) -> None:
    command = short.command_of(each, tmp_path, tmp_path, tmp_path)
    benchmark = registry.load(each.name)
    given = {word for word in command if word.startswith("--")} - {"--results"}
    assert given <= set(benchmark.arguments)
    # Some can do without.
    assert "--data" in given or benchmark.arguments.get("--data") is not Path


def test_all_of_it_takes_ten_minutes_at_most() -> None:
    assert sum(each.seconds for each in short.SHORT) <= 600
