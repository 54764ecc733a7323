"""A build runs what has changed and nothing else, and never trusts an output that it did not finish."""

from pathlib import Path

import pytest

from fathom.artefacts import Kind
from fathom.building.stages import Stage, Stamps

TEXT = Kind("a text", "a test")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("one")
    return path


def stage(source: Path, settings: object = None) -> Stage:
    output = source.with_name("output.txt")
    return Stage("copy", output, TEXT, lambda: output.write_text(source.read_text()) and None, [source], settings)


def test_a_stage_is_current_after_its_run(source: Path) -> None:
    stamps = Stamps(source.with_name("stages.json"))
    assert not stamps.current(stage(source))
    stamps.run(stage(source))
    assert stamps.current(stage(source))


def test_a_changed_input_makes_it_stale(source: Path) -> None:
    stamps = Stamps(source.with_name("stages.json"))
    stamps.run(stage(source))
    source.write_text("two")
    assert not stamps.current(stage(source))


def test_a_changed_setting_makes_it_stale(source: Path) -> None:
    stamps = Stamps(source.with_name("stages.json"))
    stamps.run(stage(source, {"epochs": 1}))
    assert stamps.current(stage(source, {"epochs": 1}))
    assert not stamps.current(stage(source, {"epochs": 2}))


def test_an_edited_or_missing_output_makes_it_stale(source: Path) -> None:
    stamps = Stamps(source.with_name("stages.json"))
    stamps.run(stage(source))
    stage(source).output.write_text("edited")
    assert not stamps.current(stage(source))
    stage(source).output.unlink()
    assert not stamps.current(stage(source))


def test_damaged_stamps_mean_that_everything_runs_again(source: Path) -> None:
    stamps = Stamps(source.with_name("stages.json"))
    stamps.run(stage(source))
    stamps.path.write_text('{"schema_version": 1, "sta')
    assert not stamps.current(stage(source))
