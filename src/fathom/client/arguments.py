"""Checks the client's arguments before they are sent: a wrong type is an error, never guessed at."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, TypeVar

from fathom.errors import ConfigError, InvalidRequestError, brief

Built = TypeVar("Built")


def text(name: str, value: object) -> str:
    """A text; None is the empty one. Numbers are refused: whether 007 and 7 are one item only the caller knows."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    number = f', as "{value}"' if isinstance(value, int) else ""
    raise InvalidRequestError(f"{name} has {brief(value)} ({type(value).__name__}); ids and names are text{number}")


def texts(name: str, values: Iterable[object] | None) -> list[str]:
    """Texts from anything that can be gone through but a single text."""
    return _texts(name, _listed(name, values, ordered=False))


def ordered_texts(name: str, values: Iterable[object] | None) -> list[str]:
    """The same, but not from a set either."""
    return _texts(name, _listed(name, values, ordered=True))


def text_map(name: str, values: object) -> dict[str, str]:
    """Texts by names, as {"country": "DE"}."""
    if not isinstance(values, Mapping):
        raise InvalidRequestError(f"{name} is {brief(values)} ({type(values).__name__}); give a dict of texts")
    return {text(name, key): text(name, value) for key, value in values.items()}


def integers(name: str, values: Iterable[object] | None) -> list[int]:
    """Whole numbers, in their order."""
    return [integer(name, each) for each in _listed(name, values, ordered=True)]


def integer(name: str, value: object) -> int:
    """A whole number, as any library writes them."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidRequestError(f"{name} has {brief(value)} ({type(value).__name__}); give a whole number")


def number(name: str, value: object) -> float:
    """A finite number, as any library writes them."""
    if not isinstance(value, bool | str | bytes):
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    raise InvalidRequestError(f"{name} is {brief(value)} ({type(value).__name__}); give a finite number")


def flag(name: str, value: object) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    raise InvalidRequestError(f"{name} is {brief(value)} ({type(value).__name__}); give True or False")


def seconds(name: str, value: object) -> float:
    """A time to wait."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return value
    raise InvalidRequestError(f"{name} is {brief(value)}; give a positive number of seconds")


def instances(name: str, values: Iterable[object] | None, kind: type[Built]) -> list[Built]:
    """Objects of one class."""
    found = []
    for value in _listed(name, values, ordered=True):
        if not isinstance(value, kind):
            wrong = f"{brief(value)} ({type(value).__name__})"
            raise InvalidRequestError(f"{name} has {wrong}; give a list of {kind.__name__} objects")
        found.append(value)
    return found


def targets(values: Iterable[object]) -> list[str]:
    """The addresses of servers; raises ConfigError."""
    try:
        found = ordered_texts("target", values)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from None
    if not found:
        raise ConfigError("target is an empty list; give host:port of one server or more")
    return list(dict.fromkeys(found))


def parts(name: str, values: Iterable[Built], size: int) -> Iterator[list[Built]]:
    """Up to ``size`` of them at a time, none before they are asked for."""
    try:
        rest = iter(values)
    except TypeError:
        raise InvalidRequestError(f"{name} is {brief(values)} ({type(values).__name__}); give a list") from None
    while part := list(islice(rest, size)):
        yield part


def instance(name: str, value: object, kind: type[Built]) -> Built:
    """One object of a class."""
    if isinstance(value, kind):
        return value
    raise InvalidRequestError(f"{name} is {brief(value)} ({type(value).__name__}); give a {kind.__name__} object")


def message(make: Callable[..., Built], **fields: Any) -> Built:
    """A message of checked fields; raises InvalidRequestError for what the wire cannot carry."""
    try:
        return make(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"not a request: {brief(error, 200)}") from None


def _texts(name: str, values: list[Any]) -> list[str]:
    return [each if isinstance(each, str) else _given(name, each) for each in values]


def _given(name: str, value: object) -> str:
    if value is None:
        raise InvalidRequestError(f"{name} has None; ids and names are text")
    return text(name, value)


def _listed(name: str, values: Any, ordered: bool) -> list[Any]:
    if type(values) in (list, tuple):
        return list(values)
    if values is None:
        return []
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise InvalidRequestError(f"{name} is a single text, {brief(values)}; give a list, as [{brief(values)!r}]")
    if isinstance(values, Mapping) or (ordered and isinstance(values, Set)):
        raise InvalidRequestError(f"{name} is a {type(values).__name__}; give a list")
    try:
        return list(values)
    except TypeError:
        raise InvalidRequestError(f"{name} is {brief(values)} ({type(values).__name__}); give a list") from None
