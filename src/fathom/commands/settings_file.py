"""Settings of training in a YAML file: a preset to start from, and sections with what differs from it.

preset: ml-1m
train:
  epochs: 20
model:
  depths: [4, 16]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from fathom.edge_profiles.document import Document, read_document, short
from fathom.errors import ConfigError
from fathom.training.presets import TrainConfig, hint, preset_names

PRESET = "preset"


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings; ``preset``: that which it starts from, None where it names none."""

    path: Path
    document: Document
    preset: str | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it; raises ConfigError, with the line, for what is no settings file."""
        document = read_document(path, kind="settings file", empty_ok=True)
        if document.problems:
            line, what = min(document.problems)
            raise ConfigError(f"{path}:{line}: {what}")
        named = (document.values or {}).get(PRESET)
        if named is not None and named not in preset_names():
            known = ", ".join(preset_names())
            raise ConfigError(f"{path}:{document.line((PRESET,))}: no preset is called {short(named)}; known: {known}")
        return cls(path, document, named)

    def applied_to(self, config: TrainConfig) -> TrainConfig:
        """The config with what the file says; raises ConfigError, with the line, for an unknown key or a bad value."""
        changed = config.model_dump()
        known = [f"{section}.{name}" for section, fields in changed.items() for name in fields]
        for section, fields in (self.document.values or {}).items():
            if section == PRESET:
                continue
            if section not in changed:
                raise self._wrong((section,), f"{section} is no section; there are {PRESET}, {', '.join(changed)}")
            if not isinstance(fields, dict):
                raise self._wrong((section,), f"{section} is a section: write its keys below it, as {known[0]}")
            for name, value in fields.items():
                if name not in changed[section]:
                    near = hint(f"{section}.{name}", known)
                    raise self._wrong((section, name), f"{section}.{name} names no setting{near}")
                changed[section][name] = value
        try:
            return TrainConfig.model_validate(changed)
        except ValidationError as error:
            first = error.errors()[0]
            where = tuple(first["loc"])
            value = short(_at(changed, where))
            raise self._wrong(
                where, f"{'.'.join(map(str, where))} is {value}: {first['msg'].removeprefix('Value error, ')}"
            ) from None

    def _wrong(self, where: tuple[int | str, ...], what: str) -> ConfigError:
        return ConfigError(f"{self.path}:{self.document.line(where)}: {what}")


def _at(values: Any, where: tuple[int | str, ...]) -> Any:
    """What lies at a place of nested values, as deep as there is anything."""
    for name in where:
        try:
            values = values[name]
        except (KeyError, IndexError, TypeError):
            break
    return values
