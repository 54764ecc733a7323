"""How the pictures of docs/results.md are drawn: panels side by side, colours, and SVG without a date."""

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GREY, FAINT = "#1b2733", "#5c6873", "#d5dade"
# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PANEL_INCH, COLUMNS = (3.7, 3.1), 3
STYLE: Any = {"svg.hashsalt": "fathom", "svg.fonttype": "none", "font.size": 9, "axes.labelcolor": GREY}


def svg(figure: Figure) -> bytes:
    """The picture as SVG, without a date or a random name in it.

    Places are in hundredths of a point: the sixth decimal depends on the processor, and a picture that is drawn again
    from the same run must be the same.
    """
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(rb"<[^>]+>", lambda tag: re.sub(rb"\d+\.\d{3,}", _hundredths, tag[0]), buffer.getvalue())


def _hundredths(number: re.Match[bytes]) -> bytes:
    return b"%.2f" % float(number[0])


def new_panels(titles: Sequence[str], xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A panel for each title, COLUMNS in a row; the first panel of a row says what the vertical axis shows."""
    columns = min(len(titles), COLUMNS)
    rows = -(-len(titles) // columns)
    width, height = PANEL_INCH
    figure = Figure(figsize=(width * columns + 0.5, height * rows + 0.4), facecolor="white", layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(titles) :]:
        axes.remove()
    for axes, title in zip(panels, titles, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(length=0, labelcolor=GREY)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(title, loc="left", size=10, color=INK)
        axes.set_xlabel(xlabel)
    for axes in panels[: len(titles) : COLUMNS]:
        axes.set_ylabel(ylabel)
    return figure, panels[: len(titles)]


def legend_above(figure: Figure, panels: Sequence[Axes], columns: int) -> Figure:
    """The figure with one legend above all panels."""
    entries = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*entries.values()], [*entries], loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
    return figure
