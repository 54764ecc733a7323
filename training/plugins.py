"""What installed packages add through entry points: importance methods, and blocks, objectives and presets of training.

A package names them in its ``pyproject.toml``, as examples/weight-norm and examples/training-parts do.
"""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fathom.errors import ConfigError, brief


def installed(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name; more than one where packages disagree."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def known(group: str, ours: Collection[str]) -> tuple[str, ...]:
    """Our own names, then those of installed packages in alphabetical order."""
    return (*ours, *sorted(name for name in installed(group) if name not in ours))


def unknown(what: str, name: str, names: Collection[str]) -> str:
    """What to say of a name that none has."""
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names)}"


def load(
    group: str, name: str, what: str, names: Collection[str], make: Callable[[Any], Any] = lambda found: found
) -> Any:
    """What an installed package has under a name; ``what`` it is, and which ``names`` there are, for messages.

    ``make``: makes what is wanted of it, and raises ValueError where it is something else. Raises ConfigError, in one
    line, for a name that is unknown, installed twice, cannot be loaded, or is something else.
    """
    found = installed(group)
    if name not in found:
        raise ConfigError(unknown(what, name, names))
    targets = sorted({entry.value for entry in found[name]})
    if len(targets) > 1:
        raise ConfigError(f"{what} {name!r} is installed twice: {', '.join(targets)}; uninstall one package")
    try:
        loaded = found[name][0].load()
    except Exception as error:  # the package is not ours, and may raise anything
        raise ConfigError(f"{what} {name!r} ({targets[0]}) cannot be loaded: {brief(error, 160)}") from error
    try:
        return make(loaded)
    except TypeError as error:
        raise ConfigError(f"{what} {name!r} ({targets[0]}) cannot be made: {brief(error, 160)}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {name!r} ({targets[0]}) {error}") from error
