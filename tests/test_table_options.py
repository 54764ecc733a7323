"""`fathom data prepare` and `fathom build` read tables by the same options, and a changed option is prepared again."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fathom.building.build import Build
from fathom.building.stages import PACKAGE
from fathom.cli import app
from fathom.commands.table_options import prepare_options
from fathom.errors import ConfigError, FathomError, MissingExtraError
from fathom.training.presets import apply_settings, preset
from fathom.training.tables.options import PrepareOptions


def options_of(*names: str) -> set[str]:
    command: Any = typer.main.get_command(app)
    for name in names:
        command = command.commands[name]
    return {parameter.name for parameter in command.params}


def test_both_commands_have_every_option_of_prepare() -> None:
    every = {field.name for field in fields(PrepareOptions)}
    assert every <= options_of("data", "prepare")
    assert every <= options_of("build")


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.csv"
    path.write_text("who;what;when\nu;b;24.03.2020\nu;a;23.03.2020\n;a;23.03.2020\n")
    return path


def test_the_summary_says_what_was_read_and_what_was_not(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,price\na,Apple,1\n")
    arguments = ["data", "prepare", str(clicks), "--out", str(tmp_path / "dataset")]
    arguments += ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]
    arguments += ["--max-malformed", "0.5", "--items-path", str(tmp_path / "items.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "malformed 1 of 3 rows: missing user (1)" in printed
    assert "clicks.csv fields are separated by semicolons" in printed
    assert "times dates in 'when' are taken as day/month/year" in printed
    assert "item data 1 of 2 items are in items.csv; id from 'item_id', title from 'title'; not used: price" in printed
    meta = json.loads((tmp_path / "dataset/meta.json").read_bytes())
    assert meta["name"] == "clicks"


def test_every_option_and_every_file_that_is_read_makes_the_prepare_stage_stale(clicks: Path, tmp_path: Path) -> None:
    items = tmp_path / "products.csv"
    items.write_text("id,title\na,Apple\n")

    def key(**given: Any) -> str:
        options = prepare_options(str(clicks), given)
        return Build(str(clicks), tmp_path / "build/bundle", preset("tiny"), options).stages()[0].key()

    changes: dict[str, Any] = {field.name: "x" for field in fields(PrepareOptions) if field.name.endswith("_column")}
    changes |= {"items_path": items, "name": "x", "timestamp_unit": "ms", "timestamp_format": "%Y", "delimiter": ";"}
    changes |= {"encoding": "latin-1", "columns": ("a", "b"), "max_malformed": 0.5, "k_core": 2, "minimum_rating": 1.0}
    changes |= {"repeats": "keep", "weight": {"view": 0.5}, "context": ("a",)}
    assert {*changes, "path"} == {field.name for field in fields(PrepareOptions)}
    keys = [key(), *(key(**{name: value}) for name, value in changes.items())]
    assert len(set(keys)) == len(keys)
    before = key(items_path=items)
    items.write_text("id,title\na,Apfel\n")
    assert key(items_path=items) != before
    before = key()
    (tmp_path / "items.parquet").write_bytes(b"metadata beside the interactions is read too")
    assert key() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delimiter", '"'], "a delimiter must have a character or more"),
        (["--encoding", "klingon"], "unknown encoding 'klingon'"),
        (["--max-malformed", "2"], "max_malformed must be a share from 0 to 1"),
        (["--timestamp-format", "day"], "timestamp_format needs signs such as %d.%m.%Y"),
        (["--columns", "a,,b"], "columns must be different names"),
        (["--items-id-column", "x"], "items_id_column does nothing without items_path"),
        (["--path", "x"], "path does nothing for"),
        (["--items-path", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_an_impossible_option_is_one_line_in_both_commands(
    clicks: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for command in (["data", "prepare"], ["build", "--preset", "tiny"]):
        named = ["--user-column", "who", "--item-column", "what"]
        given = [*command, str(clicks), "--out", str(tmp_path / "out/it"), *named, *arguments]
        with pytest.raises(FathomError) as caught:
            CliRunner().invoke(app, given, catch_exceptions=False)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out/it").exists()


def test_a_dataset_needs_no_options_of_reading(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    arguments = ["build", str(tmp_path), "--out", str(tmp_path / "b/b"), "--preset", "tiny", "--k-core", "3"]
    with pytest.raises(ConfigError, match="--k-core does nothing for it"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("command", [["data", "prepare"], ["build"]])
def test_names_that_are_not_utf8_are_refused_in_one_line(clicks: Path, tmp_path: Path, command: list[str]) -> None:
    odd = tmp_path / "caf\udce9.csv"
    odd.write_bytes(clicks.read_bytes())
    out = str(tmp_path / "out")
    cases = ([str(odd), "--out", out], [str(clicks), "--out", f"{tmp_path}/d\udce9"])
    cases += ([str(clicks), "--out", out, "--items-path", str(odd)], [str(clicks), "--out", out, "--name", "\udce9"])
    for arguments in cases:
        named = ["--user-column", "who", "--item-column", "what"]
        with pytest.raises(FathomError, match="not UTF-8"):
            CliRunner().invoke(app, [*command, *arguments, *named], catch_exceptions=False)


def test_a_stage_depends_on_the_code_that_makes_its_output(clicks: Path, tmp_path: Path) -> None:
    uses = {
        "heal nested": "exporter/planning/heal.py",
        "compare": "exporter/planning/compare.py",
        "evaluate": "training/request_time_fit.py",
        "export": "training/counting.py",
        "certify": "training/splits.py",
    }
    stages = {
        stage.name: stage for stage in Build(str(clicks), tmp_path / "b", preset("tiny"), risk=(0.1, 0.1)).stages()
    }
    assert [name for name, file in uses.items() if not file.startswith(tuple(stages[name].code))] == []


def test_a_library_that_a_late_stage_needs_is_missed_before_the_first(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    profile = (PACKAGE / "edge_profiles/phone-low.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(profile.replace("phone-low", "mine").replace("\nprecision: int8", "\nprecision: int4+lora"))
    for changed in (["train.heal_tune=lora"], []):
        config = apply_settings(preset("tiny"), changed)
        build = Build(str(clicks), tmp_path / "b" / "bundle", config, profile=None if changed else str(path))
        with pytest.raises(MissingExtraError, match=r"fathom-recommender\[peft\]"):
            build.prepare()
    assert not (tmp_path / "b").exists()


def test_the_code_that_a_stage_depends_on_exists(clicks: Path, tmp_path: Path) -> None:
    build = Build(str(clicks), tmp_path / "bundle", preset("tiny"))
    for stage in build.stages():
        assert [name for name in stage.code if not (PACKAGE / name).exists()] == []
