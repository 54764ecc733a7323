"""docs/leaderboard.md: system against system at each measure, from the stored runs; where Fathom loses comes first.

A ``Source`` turns the runs of one benchmark into rows (``leaderboard_sources.py``); what is here reads rows alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fathom.benchmarks.markdown import decimal, paragraphs, table

#: How the names of Fathom's own systems begin; the first of a board is the one that others are compared with.
FATHOM = "Fathom"

Verdict = Literal["loses", "level", "leads"]


class Row(NamedTuple):
    """What one system reached at one measure, whose name has the unit.

    ``depth``: None where the measure knows none. ``low`` and ``high``: the range over turns, or an interval; None where
    none was stored. ``bound``: it recommends nothing, and only shows how far one can go.
    """

    system: str
    depth: int | None
    measure: str
    value: float
    low: float | None
    high: float | None
    better: Literal["higher", "lower"]
    bound: bool = False

    @property
    def is_fathom(self) -> bool:
        """Whether it is one of Fathom's own systems."""
        return self.system.startswith(FATHOM)

    @property
    def badness(self) -> float:
        """The lower, the better."""
        return self.value if self.better == "lower" else -self.value

    def overlaps(self, other: "Row") -> bool:
        """Whether the ranges of the two have values in common; one without a range is a single value."""
        (low, high), (least, most) = self._range, other._range
        return low <= most and least <= high

    @property
    def _range(self) -> tuple[float, float]:
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)


class Source(NamedTuple):
    """A benchmark that compares systems.

    ``stored``: the file or folder of its runs, below the folder of the results. The others read that folder:
    ``about`` says what was measured, ``skipped`` which systems were not, and why; "" where none is missing.
    """

    title: str
    stored: str
    rows: Callable[[Path], Iterable[Row]]
    about: Callable[[Path], str]
    skipped: Callable[[Path], str] = lambda _: ""


class Board(NamedTuple):
    """The rows of one measure and depth, in the order of their source."""

    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """Measure and depth."""
        measure, depth = self.rows[0].measure, self.rows[0].depth
        return measure if depth is None else f"{measure}, depth {depth}"

    @property
    def ranked(self) -> list[Row]:
        """Best first."""
        return sorted(self.rows, key=lambda row: row.badness)

    @property
    def compared(self) -> tuple[Verdict, Row, Row] | None:
        """How Fathom stands against the best of the others, its row and theirs; None without both.

        Level: their ranges overlap.
        """
        ours = next((row for row in self.rows if row.is_fathom), None)
        theirs = next((row for row in self.ranked if not row.is_fathom and not row.bound), None)
        if ours is None or theirs is None:
            return None
        if ours.overlaps(theirs):
            return "level", ours, theirs
        return ("leads" if ours.badness < theirs.badness else "loses"), ours, theirs


def leaderboard(rows: Iterable[Row]) -> list[Board]:
    """A board for each measure and depth, in the order of the rows."""
    found: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        found.setdefault((row.measure, row.depth), []).append(row)
    return [Board(each) for each in found.values()]


def page(folder: Path, sources: Sequence[Source]) -> str:
    """docs/leaderboard.md as text."""
    found = {source: leaderboard(source.rows(folder)) for source in sources if (folder / source.stored).exists()}
    return (
        paragraphs(
            "# Leaderboard",
            "Written by `make results` from the stored runs in `results/`. At each measure the best system comes first;"
            " brackets hold the range over turns, or what the section says. Two systems whose ranges overlap are level."
            " Systems *in italics* recommend nothing: they show what is possible at best."
            " [benchmarks.md](benchmarks.md) says how everything is measured; all other figures are in"
            " [results.md](results.md).",
            "## Where Fathom loses",
            _verdicts(found, "loses"),
            "## What was left out",
            _left_out(folder, sources, found.keys()),
            "## Where Fathom is level with the best of the others",
            _verdicts(found, "level"),
            "## Where Fathom leads",
            _verdicts(found, "leads"),
            *(
                paragraphs(f"## {source.title}", source.about(folder), board_table(boards))
                for source, boards in found.items()
            ),
        )
        + "\n"
    )


def _verdicts(found: Mapping[Source, Sequence[Board]], wanted: Verdict) -> str:
    lines = []
    for source, boards in found.items():
        for board in boards:
            verdict, ours, theirs = board.compared or (None, None, None)
            if verdict == wanted and ours and theirs:
                lines.append([source.title, board.name, _cell(theirs), _cell(ours)])
    return table(["", "measure", "best of the others", "Fathom"], lines) or "Nowhere in what was measured."


def _left_out(folder: Path, sources: Iterable[Source], found: Iterable[Source]) -> str:
    there = [*found]
    lines = [f"- {source.title}: {words}" for source in there if (words := source.skipped(folder))]
    missing = [source for source in sources if source not in there]
    lines += [f"- {source.title}: not measured yet ({source.stored} is missing)." for source in missing]
    return "\n".join(lines) or "Nothing."


def board_table(boards: Iterable[Board]) -> str:
    """A line for each system of each board."""
    lines = []
    for board in boards:
        name = board.name
        for row in board.ranked:
            lines.append([name, _cell(row)])
            name = ""
    return table(["measure", "system and value"], lines)


def _cell(row: Row) -> str:
    name = f"**{row.system}**" if row.is_fathom else f"*{row.system}*" if row.bound else row.system
    spread = "" if row.low is None or row.high is None else f" ({figure(row.low)} to {figure(row.high)})"
    return f"{name} {figure(row.value)}{spread}"


def figure(value: float) -> str:
    """Three digits, all of those before the point, and four decimals below 1."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else decimal(value)
