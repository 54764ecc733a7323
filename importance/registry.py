"""Importance methods by name: ours and those of installed packages, found through entry points."""

from collections.abc import Callable, Sequence

from fathom.errors import ConfigError
from fathom.importance.interface import ImportanceMethod
from fathom.training.plugins import installed, load

GROUP = "fathom.importance"
ALL = "all"
#: The methods of a build: seconds each, and unlike one another.
DEFAULT = ("fisher", "gradient", "ablation", "block_influence")


#: Methods of this process alone.
_ADDED: dict[str, Callable[[], ImportanceMethod]] = {}


def method_names() -> tuple[str, ...]:
    """The names of all installed methods, in alphabetical order."""
    return tuple(sorted({*installed(GROUP), *_ADDED}))


def add_method(name: str, method: Callable[[], ImportanceMethod]) -> None:
    """Make a method known in this process; a package makes it known to all with an entry point (docs/architecture.md).

    ``method``: a class, or anything that makes the method when called. Raises ConfigError for a name that is taken.
    """
    if name == ALL or name in installed(GROUP) or name in _ADDED:
        raise ConfigError(f"importance method {name!r} is there already; choose another name")
    _ADDED[name] = method


def remove_method(name: str) -> None:
    """Forget a method that was added; nothing where there is none."""
    _ADDED.pop(name, None)


def load_methods(names: Sequence[str] = DEFAULT) -> dict[str, ImportanceMethod]:
    """The methods of these names, in the given order; ``all`` stands for every installed method.

    Raises ConfigError, in one line, when a name is unknown, installed twice, or cannot be loaded.
    """
    wanted = [known for name in names for known in (method_names() if name == ALL else [name])]
    if not wanted:
        raise ConfigError(f"no importance method was named; known: {', '.join(method_names())}, or {ALL}")
    return {name: _ADDED[name]() if name in _ADDED else _load(name) for name in wanted}


def _load(name: str) -> ImportanceMethod:
    method: ImportanceMethod = load(GROUP, name, "importance method", (*method_names(), ALL), _made)
    return method


def _made(found: Callable[[], ImportanceMethod]) -> ImportanceMethod:
    method = found()
    if not callable(getattr(method, "scores", None)):
        raise ValueError("has no scores(model, batches, generator)")
    return method
