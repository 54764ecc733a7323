"""The picture of a LayerRanking: a heat map of methods x layers, and how far the methods agree."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fathom.artefacts import RANKING_PLOT
from fathom.errors import optional
from fathom.files import write_bytes
from fathom.importance.layer_ranking import LayerRanking, MethodScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_WIDTH_INCH, CELL_HEIGHT_INCH = 0.78, 0.72
#: Of the table of agreement, where the names of many methods stand upright below it.
NARROW_INCH, FEW_METHODS = 0.55, 6
LABEL_WIDTH_INCH, LETTER_INCH = 1.6, 0.09
HEAD_INCH, FOOT_INCH = 1.15, 0.65
DOTS_PER_INCH = 150
INK, GREY = "#1b2733", "#5c6873"


def plot_ranking(ranking: LayerRanking, path: Path) -> None:
    """Write a PNG, whole or not at all: ranks, scores and intervals of each method, and Kendall's tau between them."""
    new_figure = optional("matplotlib.figure", "train").Figure
    methods = len(ranking.methods)
    # Few layers or methods get wider cells, so that the words above them still fit.
    layers_inch = max(ranking.layers, 11) * CELL_WIDTH_INCH
    few = methods <= FEW_METHODS
    agreement_inch = max(methods, 2) * (CELL_WIDTH_INCH if few else NARROW_INCH)
    label_inch = max(LABEL_WIDTH_INCH, LETTER_INCH * max(map(len, ranking.methods)) + 0.2)
    foot_inch = FOOT_INCH if few else label_inch
    width = label_inch + layers_inch + label_inch + agreement_inch + 0.3
    height = HEAD_INCH + (methods + 1.25) * CELL_HEIGHT_INCH + foot_inch
    figure = new_figure(figsize=(width, height), facecolor="white")
    bottom, rows_high = foot_inch / height, (methods + 1.25) * CELL_HEIGHT_INCH / height
    heat = figure.add_axes((label_inch / width, bottom, layers_inch / width, rows_high))
    _heat_map(heat, ranking)
    left = (2 * label_inch + layers_inch) / width
    agreement = figure.add_axes((left, bottom, agreement_inch / width, methods * CELL_HEIGHT_INCH / height))
    _agreement(agreement, ranking)
    _titles(figure, ranking, label_inch / width, height)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": RANKING_PLOT.mark})
    write_bytes(path, buffer.getvalue())


def _titles(figure: "Figure", ranking: LayerRanking, left: float, height: float) -> None:
    data = f"{ranking.layers} layers, {ranking.users} users, seed {ranking.seed}"
    figure.text(left, 1 - 0.4 / height, "Layer importance", size=17, weight="bold", color=INK)
    legend = (
        f"{data}.  Large: rank, 1 = most important.  Small: score, as % of the method's highest, "
        "and its 95 % bootstrap interval over users."
    )
    figure.text(left, 1 - 0.72 / height, legend, size=9.5, color=GREY)


def _heat_map(axes: "Axes", ranking: LayerRanking) -> None:
    """Consensus on top, a small gap, then one row per method, coloured by rank."""
    consensus = ranking.consensus_scores
    # The rank follows the stored order, which has its own rule for ties.
    ranks = [ranking.consensus_order.index(layer) + 1 for layer in range(ranking.layers)]
    notes = [f"{100 * score:.0f}" for score in consensus]
    _row(axes, 0.0, ranks, notes)
    places = [0.5]
    for place, method in enumerate(ranking.methods.values()):
        _row(axes, place + 1.25, method.ranks, [f"{score}\n{low} to {high}" for score, low, high in in_percent(method)])
        places.append(place + 1.75)
    axes.set_xlim(0, ranking.layers)
    axes.set_ylim(len(ranking.methods) + 1.25, 0)
    axes.set_xticks(np.arange(ranking.layers) + 0.5, [str(layer) for layer in range(ranking.layers)])
    axes.set_yticks(places, ["consensus", *(name.replace("_", " ") for name in ranking.methods)])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xlabel("layer", color=GREY)
    _bare(axes)


def in_percent(method: MethodScores) -> list[tuple[str, str, str]]:
    """Each score and its interval (low, high) as a percentage of the method's largest score, as text."""
    unit = max(map(abs, method.scores)) / 100 or 1.0
    triples = zip(method.scores, method.low, method.high, strict=True)
    return [(_short(score / unit), _short(low / unit), _short(high / unit)) for score, low, high in triples]


def _short(percent: float) -> str:
    """One decimal below 10, none above; never "-0"."""
    decimals = 1 if abs(percent) < 9.95 else 0
    return f"{round(percent, decimals) + 0.0:.{decimals}f}"


def _row(axes: "Axes", top: float, ranks: tuple[int, ...] | list[int], notes: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["YlGnBu"]
    for layer, (rank, note) in enumerate(zip(ranks, notes, strict=True)):
        weight = 0.9 - 0.85 * (rank - 1) / max(len(ranks) - 1, 1)
        ink = "white" if weight > 0.55 else INK
        axes.add_patch(Rectangle((layer, top), 1, 1, facecolor=colours(weight), edgecolor="white", linewidth=1.5))
        axes.text(layer + 0.5, top + 0.3, str(rank), ha="center", va="center", size=14, weight="bold", color=ink)
        axes.text(layer + 0.5, top + 0.71, note, ha="center", va="center", size=7.2, color=ink, linespacing=1.25)


def _agreement(axes: "Axes", ranking: LayerRanking) -> None:
    names = list(ranking.methods)
    tau = np.array([[ranking.kendall_tau[a][b] for b in names] for a in names])
    axes.pcolormesh(tau, cmap="RdBu", vmin=-1.2, vmax=1.2, edgecolors="white", linewidth=1.5)
    for (row, column), value in np.ndenumerate(tau):
        ink = "white" if abs(value) > 0.6 else INK
        axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", size=10, color=ink)
    axes.set_ylim(len(names), 0)
    axes.set_title("Kendall's tau\nbetween methods", loc="left", size=10, color=INK)
    labels = [name.replace("_", " ") for name in names]
    if len(names) <= FEW_METHODS:
        axes.set_xticks(np.arange(len(names)) + 0.5, [label.replace(" ", "\n") for label in labels])
    else:
        axes.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=90)
    axes.set_yticks(np.arange(len(names)) + 0.5, labels)
    _bare(axes)
    axes.tick_params(axis="x", labelsize=8)


def _bare(axes: "Axes") -> None:
    axes.tick_params(length=0, labelsize=10, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
