"""How figures are written in the documents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fathom.training.metrics import Interval

Row = Mapping[str, Any]
Columns = Mapping[str, str | Callable[[Row], str]]
"""Head -> the cell of a row, as a format string over its keys (``{median_us:,.0f}``) or a function of it."""


def decimal(value: float, *, signed: bool = False) -> str:
    """Four decimals without a leading zero: ``.1030``; ``+.1030`` when signed. Never "-.0000"."""
    return f"{round(value, 4) + 0.0:{'+' if signed else ''}.4f}".replace("0.", ".", 1)


def interval(value: Interval | None, *, signed: bool = False) -> str:
    """``.1030 [.0950, .1110]``; nothing for None."""
    if value is None:
        return ""
    centre, low, high = (decimal(each, signed=signed) for each in (value.value, value.low, value.high))
    return f"{centre} [{low}, {high}]"


def percent(value: Interval, *, signed: bool = False) -> str:
    """A share in percent: ``98.7 [96.1, 101.2]``."""
    sign = "+" if signed else ""
    centre, low, high = (f"{round(100 * x, 1) + 0.0:{sign}.1f}" for x in (value.value, value.low, value.high))
    return f"{centre} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) if rows else ""


def table_of(rows: Iterable[Row], columns: Columns) -> str:
    """A Markdown table of a stored run's rows; "" without rows."""
    cells = [[cell.format(**row) if isinstance(cell, str) else cell(row) for cell in columns.values()] for row in rows]
    return table([*columns], cells)


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)
