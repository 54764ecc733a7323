"""A small YAML file with the line of every key, so that a mistake can be shown where it is."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 65_536
Location = tuple[int | str, ...]


@dataclass(frozen=True)
class Document:
    """``values`` (None when the file is not a mapping at all), the line of every key, and (line, what) of mistakes."""

    values: dict[str, Any] | None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: tuple[tuple[int, str], ...] = ()
    unreadable: frozenset[Location] = frozenset()

    def line(self, location: Location) -> int:
        """The line, from 1, of a key, or of the nearest key around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read_document(path: Path) -> Document:
    """Read a YAML mapping without ever running what it says (safe tags only); never raises for a bad file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return _refused(1, "no such file; fathom profiles list shows those that ship")
    except OSError as error:
        return _refused(1, f"cannot be read: {error.strerror}")
    if len(data) > MAX_BYTES:
        return _refused(1, f"longer than {MAX_BYTES} bytes; this is not a profile")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _refused(data.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8")
    try:
        return _parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _refused(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        return _refused(text.count("\n", 0, error.position) + 1, f"not YAML: {error.reason}")
    except RecursionError:
        return _refused(1, "nested too deeply; a profile has two levels")


def _refused(line: int, message: str) -> Document:
    return Document(values=None, problems=((line, message),))


def _parse(text: str) -> Document:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            return _refused(1, "not a mapping; a profile is a list of `key: value` lines")
        reader = _Reader(loader)
        values = reader.mapping(root, ())
    finally:
        loader.dispose()
    return Document(values, reader.lines, tuple(reader.problems), frozenset(reader.unreadable))


class _Reader:
    """Constructs each value on its own, so that one bad value does not hide the others."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.loader = loader
        self.lines: dict[Location, int] = {}
        self.problems: list[tuple[int, str]] = []
        self.unreadable: set[Location] = set()

    def mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not re.fullmatch(r"[\w-]{1,64}", key_node.value):
                self.problems.append((line, "a key must be a plain word"))
                continue
            key: str = key_node.value
            location = (*at, key)
            if location in self.lines:
                self.problems.append((line, f"{key} is given twice (first on line {self.lines[location]}); keep one"))
                continue
            self.lines[location] = line
            self._value(values, key, value_node, location)
        return values

    def _value(self, values: dict[str, Any], key: str, node: yaml.Node, location: Location) -> None:
        if isinstance(node, yaml.MappingNode) and len(location) == 1:
            values[key] = self.mapping(node, location)
            return
        try:
            values[key] = self.loader.construct_object(node, deep=True)
        # For a value that YAML recognises but Python refuses (2026-13-45, !!bool x), PyYAML lets these through.
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else "not a value of its type"
            self.problems.append((node.start_mark.line + 1, f"{key} cannot be read: {reason}"))
            self.unreadable.add(location)
