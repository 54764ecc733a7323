"""docs/settings.md and `fathom train --show-settings` list every setting as the models and presets have it."""

import json
from pathlib import Path

import pytest
from in_process import fathom

import fathom.training as training
from fathom import show
from fathom.training.presets import PRESETS, TrainConfig, apply_settings, preset
from fathom.training.settings_page import page, settings

PAGE = Path(training.__path__[0]).resolve().parent / "docs" / "settings.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m fathom.training.settings_page > docs/settings.md"


def test_every_setting_is_listed_once_and_says_what_it_is_in_one_line() -> None:
    known = [f"{section}.{name}" for section, part in TrainConfig().model_dump().items() for name in part]
    assert sorted(each.key for each in settings()) == sorted(known)
    for each in settings():
        assert 0 < len(each.about) < 100
        assert len(each.about.splitlines()) == 1
        assert f"| `{each.key}` | {each.about} | {each.kind} |" in page()


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


def test_training_without_a_dataset_is_refused_in_one_line() -> None:
    refused = fathom("train", "--set", "train.epochs=3", code=2).stderr
    assert refused.splitlines() == [
        "error: fathom train needs a dataset folder and --out; fathom train --help has an example"
    ]
