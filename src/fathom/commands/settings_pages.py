"""Every setting in words: docs/settings.md, the table in docs/operating.md, and what the commands print of them.

``python -m fathom.commands.settings_pages`` writes both pages again, in a checkout.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fathom import show
from fathom.commands.options import DEFAULT_PRESET, train_config
from fathom.commands.setting_text import default_text, kind, value_text
from fathom.files import write_bytes
from fathom.serving.config import ServerSettings
from fathom.training.choosing import ChosenSettings, settings_for
from fathom.training.dataset import Dataset
from fathom.training.presets import PRESETS, TrainConfig

DOCS = Path(__file__).resolve().parents[3] / "docs"
BEGIN, END = "<!-- begin: written by `python -m fathom.commands.settings_pages` -->", "<!-- end -->"
_HEAD = f"""# Settings of training

`fathom train`, `heal` and `build` take each of these as `--set KEY=VALUE`, as often as needed:

    fathom build clicks.csv --out build/clicks/bundle --set train.epochs=20 --set model.depths=4,16

A YAML file holds many at once, in sections as the keys name them; `--config FILE` reads it, `--preset` and `--set`
override it:

    preset: ml-100k
    train:
      epochs: 20
    model:
      depths: [4, 16]

Without `--preset` the settings follow from the data (`training/choosing.py`): its users, items and events, how long
histories are, how many events share a time. ML-100K, ML-1M and Online Retail II get the preset that was tuned for them.
The output says why in a few lines, and the record of the run keeps them; `fathom train DATASET --show-settings` prints
what a dataset would get. A named preset is used whatever the data. `fathom train --show-settings --preset NAME` prints
it, with any `--set` applied, and with `--json` as JSON. The columns of the other presets show only what
differs from `{DEFAULT_PRESET}`.
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
        return value_text(self.value(config))


def settings() -> Iterator[Setting]:
    """All of them, in the order of the models that read them."""
    for section, part in TrainConfig.model_fields.items():
        assert isinstance(part.annotation, type)
        assert issubclass(part.annotation, BaseModel)
        for name, field in part.annotation.model_fields.items():
            yield Setting(f"{section}.{name}", kind(field), field.description or "")


def rows(config: TrainConfig) -> list[list[str]]:
    """Every setting of a config as rows of text, the header first."""
    return [
        ["setting", "value", "type", "what it is"],
        *([each.key, each.text(config), each.kind, each.about] for each in settings()),
    ]


def as_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The same for JSON."""
    return {each.key: {"value": each.value(config), "type": each.kind, "about": each.about} for each in settings()}


def plain(config: TrainConfig) -> dict[str, Any]:
    """Each key with its value alone."""
    return {each.key: each.value(config) for each in settings()}


def changes(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Each setting in which two configs differ, as text."""
    differing = (each for each in settings() if each.value(before) != each.value(after))
    return [f"{each.key}={each.text(after)} instead of {each.text(before)}" for each in differing]


def config_by_data(
    dataset: Dataset, given: list[str] | None, seed: int | None, file: Path | None
) -> tuple[ChosenSettings, TrainConfig]:
    """What the data asks for, and that with the settings of a file and those that were given; says both on stderr."""
    chosen = settings_for(dataset)
    config = train_config(None, given, seed, file, start=chosen.config)
    changed = changes(chosen.config, config)
    show.reasons([*chosen.reasons, *([f"given: {', '.join(changed)}"] if changed else [])])
    return chosen, config


def pages() -> dict[str, str]:
    """The text of each page in docs/ that lists settings."""
    operating = (DOCS / "operating.md").read_text()
    head, _, rest = operating.partition(BEGIN)
    tail = rest.partition(END)[2]
    return {"settings.md": training_page(), "operating.md": f"{head}{BEGIN}\n{server_table()}{END}{tail}"}


def training_page() -> str:
    """docs/settings.md."""
    default, *others = [DEFAULT_PRESET, *(name for name in PRESETS if name != DEFAULT_PRESET)]
    rows = [["setting", "what it is", "type", default, *others]]
    for each in settings():
        usual = each.text(PRESETS[default])
        found = [each.text(PRESETS[name]) for name in others]
        differing = [text if text != usual else "" for text in found]
        rows.append([f"`{each.key}`", each.about, each.kind, usual, *differing])
    return f"{_HEAD}\n{_table(rows)}"


def server_table() -> str:
    """The settings of a server, as docs/operating.md has them."""
    fields = ServerSettings.model_fields.items()
    rows = [[f"`{name}`", field.description or "", kind(field), default_text(field)] for name, field in fields]
    return _table([["setting", "what it is", "type", "default"], *rows])


def _table(rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the header first."""
    head, *body = rows
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    for page_name, page_text in pages().items():
        write_bytes(DOCS / page_name, page_text.encode())
