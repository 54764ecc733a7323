"""Settings of training from a YAML file: applied in order, and every mistake with its line."""

from pathlib import Path

import pytest

from fathom.commands.options import train_config
from fathom.commands.settings_file import SettingsFile
from fathom.errors import ConfigError
from fathom.training.presets import preset


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_a_file_changes_a_preset_and_the_command_line_changes_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: ml-1m\ntrain:\n  epochs: 7\n  seed: 3\nmodel:\n  depths: [4, 16]\n")
    config = train_config(None, None, None, path)
    assert (config.train.epochs, config.train.seed, config.model.depths) == (7, 3, (4, 16))
    assert config.train.batch_tokens == preset("ml-1m").train.batch_tokens
    changed = train_config("ml-100k", ["train.epochs=2"], 9, path)
    assert (changed.train.epochs, changed.train.seed, changed.model.depths) == (2, 9, (4, 16))
    empty = SettingsFile.load(written(tmp_path, ""))
    assert empty.applied_to(preset("beauty")) == preset("beauty")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: ml-10k\n", "settings.yaml:1: no preset is called 'ml-10k'; known: "),
        ("train:\n  epoch: 3\n", "settings.yaml:2: train.epoch names no setting; did you mean 'train.epochs'?"),
        ("trian:\n  epochs: 3\n", "settings.yaml:1: trian is no section; there are preset, "),
        ("train: 3\n", "settings.yaml:1: train is a section: write its keys below it"),
        ("train:\n  seed: 1\n  epochs: many\n", "settings.yaml:3: train.epochs is 'many': "),
        ("model:\n  layers: 4\n  depths: [4, 16]\n", "settings.yaml:1: model is "),
        ("- 3\n", "settings.yaml:1: not a mapping"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "settings.yaml:3: epochs is given twice"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(None, None, None, written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
