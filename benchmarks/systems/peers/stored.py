"""What a stored run of the comparison says, turn by turn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.peers.arms import fixed
from fathom.benchmarks.systems.peers.loads import WITHIN_MS
from fathom.benchmarks.systems.peers.turns import FATHOM

#: A figure of each turn; None where a turn has none.
Figures = Sequence[float | None]


class Ratio(NamedTuple):
    """Fathom's figure over a peer's, turn by turn: the median, the least and the greatest."""

    middle: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """For people: ``1.25 (1.20 to 1.31)``."""
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Figures, theirs: Figures) -> Ratio | None:
    """None where no turn has both figures, or a peer's are 0."""
    found = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b]
    return Ratio(median(found), min(found), max(found)) if found else None


def middle(figures: Figures) -> float | None:
    """The median of the turns that have one."""
    known = [figure for figure in figures if figure is not None]
    return median(known) if known else None


@dataclass(frozen=True)
class Measured:
    """``turns``: of each, what was measured, by the name of the server."""

    turns: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, run: StoredRun) -> "Measured":
        """Of a stored run."""
        return cls(run["result"]["turns"])

    @property
    def peers(self) -> list[str]:
        """Their names, as they were measured first."""
        return [name for name in self.turns[0] if name != FATHOM]

    def side(self, name: str, key: str) -> Figures:
        """A figure of a server as a whole: ``start_s`` or ``memory_mb``."""
        return [turn[name][key] for turn in self.turns]

    def closed(self, name: str, depth: int, loop: str, key: str) -> Figures:
        """A figure of a closed loop, ``busy`` or ``alone``."""
        return [turn[name]["closed"][str(depth)][loop][key] for turn in self.turns]

    def row(self, name: str, arm: str, of: str, factor: float, key: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
        """Something of a load in each turn; None where it was not offered, or is thrown away."""
        return [self._row(turn, name, arm, of, factor, WITHIN_MS, key) for turn in self.turns]

    def goodput(self, name: str, arm: str, of: str, factor: float, within_ms: int = WITHIN_MS) -> Figures:
        """Answers per second within a time; of a server that was told a deadline, in the load with that deadline."""

        def within(row: Mapping[str, Any]) -> float | None:
            found: float | None = row["within"].get(str(within_ms))
            return found

        other = [self._row(turn, name, arm, of, factor, within_ms, within) for turn in self.turns]
        return other if any(each is not None for each in other) else self.row(name, arm, of, factor, within)

    def best(self, name: str, depth: int) -> Figures:
        """The most answers per second in time of any load at a fixed depth."""
        rows = [turn[name]["rows"].get(fixed(depth), ()) for turn in self.turns]
        return [max((_in_time(row) for row in each if _is_usual(row)), default=None) for each in rows]

    def thrown_away(self) -> list[str]:
        """Which loads the client was too busy for."""
        return [
            f"{name}, {arm}, {row['offered_per_s']:,.0f} requests/s ({row['client_cpu']:.0%})"
            for turn in self.turns
            for name, side in turn.items()
            for arm, rows in side["rows"].items()
            for row in rows
            if row.get("thrown_away")
        ]

    @staticmethod
    def _row(
        turn: Mapping[str, Any],
        name: str,
        arm: str,
        of: str,
        factor: float,
        deadline_ms: int,
        key: Callable[[Mapping[str, Any]], Any],
    ) -> Any:
        for row in turn[name]["rows"].get(arm, ()):
            if (row["of"], row["factor"], row["deadline_ms"]) == (of, factor, deadline_ms) and "within" in row:
                return key(row)
        return None


def _is_usual(row: Mapping[str, Any]) -> bool:
    return row["deadline_ms"] == WITHIN_MS and "within" in row


def _in_time(row: Mapping[str, Any]) -> float:
    found: float = row["within"][str(WITHIN_MS)]
    return found
