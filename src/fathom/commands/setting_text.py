"""Fields of a settings class in words."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

_KINDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
    tuple[int, ...]: "whole numbers",
    tuple[Path, ...]: "paths",
    tuple[str, ...]: "texts",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def help_text(field: FieldInfo) -> str:
    """The first sentence of a setting's description."""
    return f"{(field.description or '').partition('. ')[0].removesuffix('.')}."


def default_text(field: FieldInfo) -> str:
    """The default of a setting in words."""
    extra = field.json_schema_extra
    return str(extra["default_text"]) if isinstance(extra, dict) else value_text(field.default)


def value_text(value: Any) -> str:
    """A value as ``--set``, the environment and a settings file take it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def kind(field: FieldInfo) -> str:
    """The type of a setting's value in words, with its bounds."""
    annotation = field.annotation
    if get_origin(annotation) is UnionType:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    name = _KINDS[annotation]
    found = {key: getattr(bound, key) for bound in field.metadata for key in _BOUNDS if hasattr(bound, key)}
    if found.keys() == {"ge", "le"}:
        return f"{name}, {found['ge']} to {found['le']}"
    bounds = [f"{_BOUNDS[key]} {value}" for key, value in found.items()]
    return ", ".join([name, " and ".join(bounds)] if bounds else [name])
