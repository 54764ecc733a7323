"""How figures are written in the documents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

from fathom.training.metrics import Interval

Row = Mapping[str, Any]


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


class _Cells(Formatter):
    """Formats that know ``decimal``, ``interval`` and ``percent`` as well, signed after a "+"; None is left empty."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return ""
        if isinstance(value, list):
            return ", ".join(self.format_field(each, format_spec) for each in value)
        form = _FORMS.get(format_spec.removeprefix("+"))
        if form is None:
            return format(value, format_spec)
        figure = Interval(**value) if isinstance(value, Mapping) else value
        return form(figure, signed=format_spec.startswith("+"))


_FORMS: dict[str, Callable[..., str]] = {"decimal": decimal, "interval": interval, "percent": percent}


def table_of(rows: Iterable[Row], columns: str) -> str:
    """A Markdown table of a stored run's rows; "" without rows.

    columns: ``head={cell} | head={cell}``, each cell a format string over a row's keys: ``median µs={median_us:.0f}``.
    """
    heads, _, cells = zip(*(column.partition("=") for column in columns.split(" | ")), strict=True)
    return table(heads, [[_Cells().vformat(cell, (), row) for cell in cells] for row in rows])


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)
