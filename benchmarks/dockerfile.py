"""Reads a Dockerfile: its stages, and the instructions of each."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import NamedTuple

from fathom.errors import ConfigError

_FROM = re.compile(r"(?P<base>\S+)(\s+AS\s+(?P<name>\S+))?", re.IGNORECASE)


class Instruction(NamedTuple):
    """``line``: where it begins, from 1; ``flags``: as ``{"from": "build"}``; ``text``: all behind them."""

    line: int
    name: str
    flags: Mapping[str, str]
    text: str

    def words(self) -> list[str]:
        """The arguments, of either form."""
        return self.command() if self.is_exec_form() else shlex.split(self.text)

    def is_exec_form(self) -> bool:
        """Whether the arguments are a JSON list, so that no shell reads them."""
        return self.text.startswith("[")

    def command(self) -> list[str]:
        """Of RUN, CMD and ENTRYPOINT: what is executed."""
        return list(json.loads(self.text)) if self.is_exec_form() else ["/bin/sh", "-c", self.text]

    def settings(self, known: Mapping[str, str]) -> dict[str, str]:
        """Of ENV: the variables that it sets, where ``known`` are those before it."""
        pairs = (word.partition("=") for word in shlex.split(self.text))
        return {name: Template(value).safe_substitute(known) for name, _, value in pairs}


@dataclass(frozen=True)
class Stage:
    """``base``: another stage's name, or an image."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


def read_stages(path: Path) -> list[Stage]:
    """The stages in their order, the last being what is built by default. Raises ConfigError for no Dockerfile."""
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            found = _FROM.fullmatch(instruction.text)
            if not found:
                raise ConfigError(f"{path}:{instruction.line}: FROM needs one image")
            stages.append(Stage(found["name"] or str(len(stages)), found["base"], ()))
        elif stages:
            last = stages.pop()
            stages.append(Stage(last.name, last.base, (*last.instructions, instruction)))
        else:
            raise ConfigError(f"{path}:{instruction.line}: {instruction.name} stands before FROM")
    if not stages:
        raise ConfigError(f"{path}: there is no FROM, so this is not a Dockerfile")
    return stages


def lineage(stages: list[Stage], target: str) -> list[Stage]:
    """A stage and those that it is made from, the first one first. Raises ConfigError for an unknown stage."""
    by_name = {stage.name: stage for stage in stages}
    if target not in by_name:
        raise ConfigError(f"no stage is called {target}; there are {', '.join(by_name)}")
    found = [by_name[target]]
    while found[0].base in by_name:
        found.insert(0, by_name[found[0].base])
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    begin, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        begin = begin if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            flags: dict[str, str] = {}
            # HEALTHCHECK's CMD has no flags of its own, so all of them stand in front.
            while rest.startswith("--"):
                flag, _, rest = rest.partition(" ")
                key, _, value = flag[2:].partition("=")
                flags[key] = value
            yield Instruction(begin, name.upper(), flags, rest.strip())
            parts = []
