"""Options that several commands share, and what each command needs before it can run."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.errors import MissingExtraError

if TYPE_CHECKING:
    from fathom.training.presets import TrainConfig

DEFAULT_PRESET = "ml-100k"

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Data = Annotated[Path, typer.Option("--data", help="Dataset folder, made by `fathom data prepare`.")]
Out = Annotated[Path, typer.Option(help="What to write; replaced only if it is what this command wrote.")]
Preset = Annotated[str | None, typer.Option(help="Settings to start from: ml-100k, ml-1m, beauty, retail, tiny.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: train.epochs=3. Repeatable; train --show-settings lists all."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]


def need_training() -> None:
    """Raise MissingExtraError without the extra `train`."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("polars") is None:
        raise MissingExtraError("torch", "train")
    importlib.import_module("fathom.training")  # before anything else loads torch: it sets OpenMP's waiting


def train_config(preset_name: str, settings: list[str] | None, seed: int | None) -> "TrainConfig":
    """A preset with the settings that were given."""
    from fathom.training.presets import apply_settings, preset

    config = apply_settings(preset(preset_name), settings or [])
    return config if seed is None else apply_settings(config, [f"train.seed={seed}"])


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_bytes())
