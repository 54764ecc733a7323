"""A small YAML file with the line of every key, so that a mistake can be shown where it is."""

import os
import re
import stat
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


def read_document(path: Path, *, kind: str = "profile", empty_ok: bool = False, levels: int = 2) -> Document:
    """Read a YAML mapping without ever running what it says (safe tags only); never raises for a bad file.

    ``kind``: what the file should be, in a word. ``empty_ok``: a file without any key is an empty mapping. ``levels``:
    so many levels of mappings have plain words as keys, whose lines are known. Anything but a regular file of at most
    MAX_BYTES is refused unread, and so are aliases: a few lines of them expand to billions of values.
    """
    try:
        data = _read(path)
    except FileNotFoundError:
        hint = "; fathom profiles list shows those that ship" if kind == "profile" else ""
        return _refused(1, f"no such file{hint}")
    except OSError as error:
        return _refused(1, f"cannot be read: {error.strerror}")
    except ValueError as error:
        return _refused(1, f"{error}; this is not a {kind}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _refused(data.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8")
    try:
        return _parse(text, kind, empty_ok, levels)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _refused(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        return _refused(text.count("\n", 0, error.position) + 1, f"not YAML: {error.reason}")
    except RecursionError:
        return _refused(1, f"nested too deeply; this is not a {kind}")


def short(value: Any) -> str:
    """A value as an error may repeat it: one line of at most 60 characters."""
    if value is None:
        return "empty"
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def _read(path: Path) -> bytes:
    """The bytes of a small regular file; raises OSError, or ValueError for anything else."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    # Some files of /proc call themselves regular and make a reader wait; unread, they give None.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        data = file.read(MAX_BYTES + 1)
    if data is None:
        raise ValueError("not a regular file")
    if len(data) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    return data


def _refused(line: int, message: str) -> Document:
    return Document(values=None, problems=((line, message),))


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            where = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write it out", where)
        return super().compose_node(parent, index)


def _parse(text: str, kind: str, empty_ok: bool, levels: int) -> Document:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None and empty_ok:
            return Document({})
        if not isinstance(root, yaml.MappingNode):
            return _refused(1, f"not a mapping; a {kind} is a list of `key: value` lines")
        reader = _Reader(loader, levels)
        values = reader.mapping(root, ())
    finally:
        loader.dispose()
    return Document(values, reader.lines, tuple(reader.problems), frozenset(reader.unreadable))


class _Reader:
    """Constructs each value on its own, so that one bad value does not hide the others."""

    def __init__(self, loader: yaml.SafeLoader, levels: int) -> None:
        self.loader = loader
        self.levels = levels
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
        if isinstance(node, yaml.MappingNode) and len(location) < self.levels:
            values[key] = self.mapping(node, location)
            return
        try:
            values[key] = self.loader.construct_object(node, deep=True)
        # For a value that YAML recognises but Python refuses (2026-13-45, !!bool x), PyYAML lets these through.
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else "not a value of its type"
            self.problems.append((node.start_mark.line + 1, f"{key} cannot be read: {reason}"))
            self.unreadable.add(location)
