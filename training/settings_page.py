"""Every setting that ``--set`` can change, in words: docs/settings.md and `fathom train --show-settings`.

``python -m fathom.training.settings_page > docs/settings.md`` writes the page again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fathom.training.presets import PRESETS, TrainConfig

DEFAULT_PRESET = "ml-100k"
_KINDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    tuple: "whole numbers",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

_HEAD = f"""# Settings of training

`fathom train`, `heal` and `build` take each of these as `--set KEY=VALUE`, as often as needed:

    fathom build clicks.csv --out build/clicks/bundle --set train.epochs=20 --set model.depths=4,16

All start from a preset: `--preset NAME`; without it, `fathom build` takes the one that was tuned for the data set, if
there is one, and otherwise `{DEFAULT_PRESET}`, as `fathom train` does. `fathom train --show-settings --preset NAME`
prints what would be used, with any `--set` applied, and with `--json` as JSON. The columns of the other presets show
only what differs from `{DEFAULT_PRESET}`.
"""


@dataclass(frozen=True)
class Setting:
    """One key of ``--set``, the type of its value, and what it means."""

    key: str
    kind: str
    about: str

    def value(self, config: TrainConfig) -> Any:
        """What a config says."""
        section, _, name = self.key.partition(".")
        return getattr(getattr(config, section), name)

    def text(self, config: TrainConfig) -> str:
        """The same as ``--set`` takes it."""
        value = self.value(config)
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else str(value)


def settings() -> Iterator[Setting]:
    """All of them, in the order of the models that read them."""
    for section, part in TrainConfig.model_fields.items():
        assert isinstance(part.annotation, type)
        assert issubclass(part.annotation, BaseModel)
        for name, field in part.annotation.model_fields.items():
            yield Setting(f"{section}.{name}", _kind(field), field.description or "")


def rows(config: TrainConfig) -> list[list[str]]:
    """Every setting of a config as rows of text, the header first."""
    return [
        ["setting", "value", "type", "what it is"],
        *([each.key, each.text(config), each.kind, each.about] for each in settings()),
    ]


def as_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The same for JSON."""
    return {each.key: {"value": each.value(config), "type": each.kind, "about": each.about} for each in settings()}


def page() -> str:
    """docs/settings.md."""
    default, *others = [DEFAULT_PRESET, *(name for name in PRESETS if name != DEFAULT_PRESET)]
    head = ["setting", "what it is", "type", default, *others]
    lines = [_HEAD, _line(head), _line(["---"] * len(head))]
    for each in settings():
        usual = each.text(PRESETS[default])
        found = [each.text(PRESETS[name]) for name in others]
        differing = [text if text != usual else "" for text in found]
        lines.append(_line([f"`{each.key}`", each.about, each.kind, usual, *differing]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _kind(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    name = _KINDS[get_origin(field.annotation) or field.annotation]
    found = {key: getattr(bound, key) for bound in field.metadata for key in _BOUNDS if hasattr(bound, key)}
    if found.keys() == {"ge", "le"}:
        return f"{name}, {found['ge']} to {found['le']}"
    bounds = [f"{_BOUNDS[key]} {value}" for key, value in found.items()]
    return ", ".join([name, " and ".join(bounds)] if bounds else [name])


if __name__ == "__main__":
    print(page(), end="")
