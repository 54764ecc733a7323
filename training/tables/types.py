"""Event types, such as view and purchase: how many events each has, and what an event of it weighs."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from fathom.errors import DataError
from fathom.training.tables.columns import listed

MOST_TYPES = 1_000


@dataclass
class EventTypes:
    """The types of a table's events.

    column: where they stand; weights: type -> what an event of it weighs, 0 for one that is left out; None: all
    weigh 1. events: type -> its usable events so far.
    """

    path: Path
    column: str
    weights: dict[str, float] | None = None
    events: Counter[str] = field(default_factory=Counter)

    def weigh(self, types: pl.Series) -> pl.Series:
        """Count these events; what each weighs, float32, 1 where its type has no weight.

        Raises DataError for more types than a column of types can have.
        """
        for name, count in types.value_counts().iter_rows():
            self.events[name] += count
        if len(self.events) > MOST_TYPES:
            raise DataError(
                f"{self.path}: column {self.column!r} has more than {MOST_TYPES:,} different values, which are no event"
                f" types ({listed(list(self.events)[:3])}, ...); choose another with --type-column"
            )
        given = self.weights or {}
        return types.replace_strict(list(given), list(given.values()), default=1.0, return_dtype=pl.Float32)

    def check(self) -> None:
        """Raise DataError unless the weights name the types that the events have, all of them and no others."""
        if self.weights is None:
            return
        found = sorted(self.events)
        if missing := [name for name in found if name not in self.weights]:
            raise DataError(
                f"{self.path}: no weight for the event types {listed(missing)}; column {self.column!r} has:"
                f" {listed(found)}; add --weight {missing[0]}=1, or =0 to leave its events out"
            )
        if unknown := [name for name in self.weights if name not in self.events]:
            raise DataError(
                f"{self.path}: no event is of type {unknown[0]!r}; column {self.column!r} has: {listed(found)};"
                " correct --weight"
            )

    def note(self) -> str:
        """The types in one line, for the notes of meta.json."""
        parts = (f"{name!r} weighs {of['weight']:g} (events: {of['events']:,})" for name, of in self.as_dict().items())
        return f"event types: {', '.join(parts)}"

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Type -> its weight and its usable events, for meta.json."""
        weights = self.weights or {}
        return {name: {"weight": weights.get(name, 1.0), "events": self.events[name]} for name in sorted(self.events)}
