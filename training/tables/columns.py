"""Which column of a table holds what: the usual names, and clear refusals where they do not settle it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom.errors import DataError
from fathom.training.tables.context import PREFIX

Role = Literal["user", "item", "timestamp", "position", "rating", "type", "title", "categories", "id"]

_ITEMS = (
    *("item_id", "item", "iid", "product_id", "product", "product_code", "movie_id", "movie", "film_id", "book_id"),
    *("song_id", "track_id", "artist_id", "article_id", "news_id", "video_id", "game_id", "recipe_id", "asin"),
    *("parent_asin", "isbn", "sku", "stock_code", "business_id"),
)

#: Names are compared without case, punctuation and spaces: userId, USER_ID and "User ID" are one.
USUAL: dict[Role, tuple[str, ...]] = {
    "user": (
        *("user_id", "user", "uid", "customer_id", "customer", "visitor_id", "visitor", "member_id", "reviewer_id"),
        *("client_id", "account_id", "profile_id"),
    ),
    "item": _ITEMS,
    "timestamp": (
        *("timestamp", "time", "ts", "date", "datetime", "date_time", "event_time", "event_timestamp", "event_date"),
        *("created_at", "rated_at", "unix_timestamp", "unix_time", "unix_review_time", "interaction_time"),
        *("purchase_date", "order_date", "invoice_date", "click_time", "clicked_at", "viewed_at", "watched_at"),
        *("played_at", "time_ms", "time_stamp"),
    ),
    "position": ("position", "pos", "sequence_number", "event_index"),
    "rating": ("rating", "ratings", "stars"),
    "type": (
        *("event_type", "event", "event_name", "behavior", "behavior_type", "behaviour", "action", "action_type"),
        *("interaction", "interaction_type", "type"),
    ),
    "title": ("title", "name", "item_name", "item_title", "movie_title", "product_title", "product_name"),
    "categories": ("categories", "category", "genres", "genre"),
    "id": ("id", *_ITEMS),
}
_SHOWN = 8
_NAME_CHARS = 24
_RECBOLE_TYPE = re.compile(r":(token|float)(_seq)?$")


@dataclass(frozen=True)
class ColumnChoice:
    """Which of a table's columns are used, by role, and which are not."""

    used: dict[Role, str]
    unused: tuple[str, ...]


def choose(
    path: Path, found: Sequence[str], wanted: dict[Role, str | None], required: Sequence[Role], options: dict[Role, str]
) -> ColumnChoice:
    """The column of each wanted role: the one named, else the only one with a usual name, else none.

    found: the table's columns; wanted: role -> the name that was asked for, None for a usual one;
    options: role -> the option that names its column.

    Raises DataError for a name that is not there or is there twice, for two candidates, and for a required
    role without a column.
    """
    used: dict[Role, str] = {}
    for role, name in wanted.items():
        column = _candidate(path, found, role, options[role]) if name is None else _named(path, found, name)
        if column is None and role in required:
            raise DataError(
                f"{path}: no column for the {role} (such as {', '.join(USUAL[role][:3])}); it has:"
                f" {listed(found)}; name it with {options[role]}"
            )
        if column is not None:
            if found.count(column) > 1:
                raise DataError(f"{path}: two columns are called {_short(column)!r}; rename one of them")
            if role in required and column in used.values():
                other = next(taken for taken, name in used.items() if name == column)
                raise DataError(f"{path}: {_short(column)!r} cannot be both {other} and {role}; choose another column")
            used[role] = column
    return ColumnChoice(used, tuple(name for name in found if name not in used.values()))


def context_columns(
    path: Path, found: Sequence[str], features: Sequence[str], used: Mapping[str, str]
) -> dict[str, str]:
    """``context:FEATURE`` -> the column of each feature of the context, which is called as the feature is.

    used: role -> the columns that are taken. Raises DataError for a column that is not there, there twice, or taken.
    """
    taken = dict(used)
    for feature in features:
        column = _named(path, found, feature)
        if found.count(column) > 1:
            raise DataError(f"{path}: two columns are called {_short(column)!r}; rename one of them")
        if column in taken.values():
            other = next(role for role, name in taken.items() if name == column)
            raise DataError(f"{path}: {_short(column)!r} cannot be both {other} and context; leave it out of --context")
        taken[PREFIX + feature] = column
    return {role: column for role, column in taken.items() if role not in used}


def has_usual(found: Sequence[str], role: Role) -> bool:
    """Whether some column has a usual name of the role."""
    return any(_plain(name) in _PLAIN[role] for name in found)


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first few, shortened, and how many there are."""
    shown = ", ".join(_short(name) or "(no name)" for name in names[:_SHOWN]) or "none"
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)} in all)"


def _named(path: Path, found: Sequence[str], name: str) -> str:
    for column in found:
        if name in (column, _RECBOLE_TYPE.sub("", column)):
            return column
    raise DataError(f"{path}: no column {_short(name)!r}; it has: {listed(found)}")


def _candidate(path: Path, found: Sequence[str], role: Role, option: str) -> str | None:
    candidates = [name for name in dict.fromkeys(found) if _plain(name) in _PLAIN[role]]
    if len(candidates) > 1:
        first, second = map(_short, candidates[:2])
        raise DataError(f"{path}: {first!r} and {second!r} could both be the {role}; choose one with {option}")
    return candidates[0] if candidates else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", _RECBOLE_TYPE.sub("", name.strip()).casefold())


def _short(name: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in name)
    return printable if len(printable) <= _NAME_CHARS else printable[: _NAME_CHARS - 1] + "…"


_PLAIN = {role: frozenset(map(_plain, names)) for role, names in USUAL.items()}
