"""How figures are written in the documents."""

from collections.abc import Sequence

from fathom.training.metrics import Interval


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
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
