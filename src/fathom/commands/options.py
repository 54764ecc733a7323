"""Options shared by several commands, and helpers that commands need before they run."""

import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.errors import ConfigError, MissingExtraError, brief

if TYPE_CHECKING:
    from fathom.training.presets import TrainConfig

DEFAULT_PRESET = "ml-100k"
#: Of certificates: the loss that they allow, and the probability that they are wrong.
EPS, DELTA = 0.05, 0.05

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Data = Annotated[Path, typer.Option("--data", help="Dataset folder, made by `fathom data prepare`.")]
Out = Annotated[Path, typer.Option(help="What to write; replaced only if it is what this command wrote.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings to start from: ml-100k, ml-1m, beauty, retail, tiny, or those of an installed package. Default: "
        "what the data asks for."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: train.epochs=3. Repeatable; train --show-settings lists all."),
]
SettingsPath = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings, which --preset and --set override.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers of an option, as "4,8,12,16"; raises ConfigError for anything else."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {brief(text)}: give whole numbers separated by commas, as 4,8,12,16") from None


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: in place of each named parameter, the command takes the options that its group declares.

    A group is a function or a dataclass with parameters as typer reads them; the command gets what it returns.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        added = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

        @wraps(command)
        def run(**values: Any) -> None:
            made = {name: group(**{each: values.pop(each) for each in added[name]}) for name, group in groups.items()}
            command(**values, **made)

        spread = [each for name in own for each in (added[name].values() if name in added else [own[name]])]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in spread]
        # Where typer looks for options.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def need_training() -> None:
    """Raise MissingExtraError without the extra `train`."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("polars") is None:
        raise MissingExtraError("torch", "train")
    importlib.import_module("fathom.training")  # before anything else loads torch: it sets OpenMP's waiting


def train_config(
    preset_name: str | None,
    settings: list[str] | None,
    seed: int | None,
    file: Path | None = None,
    *,
    start: "TrainConfig | None" = None,
) -> "TrainConfig":
    """A preset with the settings of a file, and with those that were given; the file's preset where none is named.

    ``start``: in place of the default preset, where neither the command nor the file names one.
    """
    from fathom.commands.settings_file import SettingsFile
    from fathom.training.presets import apply_settings, preset

    held = None if file is None else SettingsFile.load(file)
    named = preset_name or (held and held.preset)
    config = preset(named or DEFAULT_PRESET) if named or start is None else start
    config = config if held is None else held.applied_to(config)
    config = apply_settings(config, settings or [])
    return config if seed is None else apply_settings(config, [f"train.seed={seed}"])


def names_preset(preset_name: str | None, file: Path | None) -> bool:
    """Whether the command or the file of settings names a preset."""
    from fathom.commands.settings_file import SettingsFile

    return preset_name is not None or (file is not None and SettingsFile.load(file).preset is not None)


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_bytes())


def methods_within(methods: str, budget: str | None) -> tuple[list[str], float | None]:
    """The names of importance methods, separated by commas, and the time for them in seconds: 60s without one for auto.

    Raises ConfigError for a budget that is no time.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    is_auto = names == ["auto"]
    budget = budget or ("60s" if is_auto else None)
    return ["all"] if is_auto else names, None if budget is None else _seconds(budget)


def _seconds(budget: str) -> float:
    """60s, 5m, or a number of seconds."""
    number, unit = (budget[:-1], budget[-1]) if budget[-1:] in ("s", "m") else (budget, "s")
    try:
        seconds = float(number) * (60 if unit == "m" else 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--budget {budget}: a time above 0, as 60s or 5m")
    return seconds
