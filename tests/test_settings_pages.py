"""The pages, `fathom train --show-settings` and `fathom serve --help` list every setting as its class has it."""

import json
from pathlib import Path

import pytest
from in_process import fathom
from typer.testing import CliRunner

from fathom import show
from fathom.cli import app
from fathom.commands.setting_text import default_text, help_text
from fathom.commands.settings_pages import DOCS, pages, settings, training_page
from fathom.errors import FathomError
from fathom.exporter.engines.reduced_quality import MAX_LOSS
from fathom.importance.registry import DEFAULT
from fathom.serving.config import ServerSettings
from fathom.training.presets import PRESETS, TrainConfig, apply_settings, preset
from fathom.training.tables.rows import MALFORMED_LIMIT


@pytest.mark.parametrize("name", ["settings.md", "operating.md"])
def test_the_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], "write it again: python -m fathom.commands.settings_pages"


def test_every_setting_is_listed_once_and_says_what_it_is_in_one_line() -> None:
    known = [f"{section}.{name}" for section, part in TrainConfig().model_dump().items() for name in part]
    assert sorted(each.key for each in settings()) == sorted(known)
    for each in settings():
        assert 0 < len(each.about) < 100
        assert len(each.about.splitlines()) == 1
        assert f"| `{each.key}` | {each.about} | {each.kind} |" in training_page()


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_shown_can_be_given_to_set(name: str) -> None:
    shown = [f"{each.key}={each.text(preset(name))}" for each in settings()]
    assert apply_settings(TrainConfig(), shown) == preset(name)


def test_the_command_shows_what_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["train", "--show-settings", "--preset", "ml-1m", "--set", "train.epochs=3", "--seed", "7"]
    values = {key: each["value"] for key, each in json.loads(fathom(*asked, "--json").stdout).items()}
    expected = apply_settings(preset("ml-1m"), ["train.epochs=3", "train.seed=7"])
    assert values == {each.key: json.loads(json.dumps(each.value(expected))) for each in settings()}
    for width in (60, 80, 120):
        monkeypatch.setattr(show.out, "width", width)
        printed = fathom(*asked).stdout
        assert max(map(len, printed.splitlines())) <= width
        assert set(printed.split()) >= set(values)


def test_settings_that_the_data_chose_and_others_replaced_are_named(tiny_csv: Path, tmp_path: Path) -> None:
    fathom("data", "prepare", str(tiny_csv), "--out", str(tmp_path / "dataset"))
    asked = ["train", str(tmp_path / "dataset"), "--show-settings"]
    chosen = fathom(*asked).stderr
    assert "given" not in chosen
    given = fathom(*asked, "--set", "train.epochs=3", "--set", "model.dropout=0.45").stderr
    assert given.startswith(chosen.strip("\n"))
    assert given.splitlines()[-1] == "  given: model.dropout=0.45 instead of 0.4, train.epochs=3 instead of 10"


def test_training_without_a_dataset_is_refused_in_one_line() -> None:
    refused = fathom("train", "--set", "train.epochs=3", code=2).stderr
    assert refused.splitlines() == [
        "error: fathom train needs a dataset folder and --out; fathom train --help has an example"
    ]


def test_the_help_of_serve_has_every_setting_with_what_it_is_and_its_default() -> None:
    printed = " ".join(CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "400"}).output.split())
    for name, field in ServerSettings.model_fields.items():
        assert f"--{name.replace('_', '-')} <" in printed
        assert help_text(field) in printed
        assert f"Default: {default_text(field)}." in printed


def test_options_of_serve_are_checked_by_the_class() -> None:
    for option in ("--port", "--drain-s", "--threads", "--device", "--log-level"):
        found = CliRunner().invoke(app, ["serve", "nowhere", option, "many"]).exception
        assert isinstance(found, FathomError)
        assert str(found).startswith(f"{option}: 'many' is not possible: ")


def test_an_option_of_serve_that_is_not_given_leaves_the_file_its_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.yaml").write_text("trust: [a.pem]\nforce: true\nport: 1\n")
    used = []
    monkeypatch.setattr("fathom.serving.process.serve", lambda settings, *_, **__: used.append(settings))
    given = ["--config", str(tmp_path / "server.yaml"), "--port", "7", "--metrics-port", "off"]
    for more in ([], ["--trust", "b.pem", "--trust", "c.pem", "--max-queue", "5"]):
        assert CliRunner().invoke(app, ["serve", "bundle", *given, *more]).exception is None
    file = ServerSettings(trust=(Path("a.pem"),), force=True, port=7)
    assert used == [file, file.model_copy(update={"trust": (Path("b.pem"), Path("c.pem")), "max_queue": 5})]


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("export", f"otherwise {MAX_LOSS}."),
        ("data prepare", f"Accepted share of malformed rows. Default: {MALFORMED_LIMIT}."),
        ("rank", f"Default: {', '.join(DEFAULT)}."),
        ("history import", f"[default: {ServerSettings().history_max_events}]"),
    ],
)
def test_a_default_in_a_help_text_is_what_the_code_has(command: str, default: str) -> None:
    printed = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "400"}).output
    assert default in " ".join(printed.split())
