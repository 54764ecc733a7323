"""The picture of a lattice: how good so many layers can be, what each method's choice gives, and the best chain."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fathom.artefacts import LATTICE_PLOT
from fathom.errors import ConfigError, optional
from fathom.files import write_bytes
from fathom.importance.lattice.lattice import Lattice
from fathom.importance.lattice.values import along, best_chain, frontier, layers_of
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.report.plot import DOTS_PER_INCH, GREY, INK
from fathom.importance.statistics import Floats, order_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"ndcg@10": "NDCG@10", "loss": "mean log p of the right answer"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
CHAIN = "#e69f00"


def plot_lattice(lattice: Lattice, ranking: LayerRanking, depths: Sequence[int], path: Path) -> None:
    """Write a PNG: quality against the number of layers, best, median and worst subset, with every method's choice.

    The four methods with the highest grade have names. Raises ConfigError for a lattice that is not whole.
    """
    new_figure = optional("matplotlib.figure", "train").Figure
    if not lattice.is_whole:
        raise ConfigError("a sampled lattice has no frontier to draw; measure every subset")
    figure = new_figure(figsize=(13.5, 6.6), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(TITLES))
    for axes, (metric, title) in zip(panels, TITLES.items(), strict=True):
        _panel(axes, lattice.mean(metric), ranking, depths)
        axes.set_title(title, loc="left", size=13, weight="bold", color=INK)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9.5)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": LATTICE_PLOT.mark})
    write_bytes(path, buffer.getvalue())


def best_graded(ranking: LayerRanking, count: int = len(COLOURS)) -> list[str]:
    """The methods with the highest grades by the loss, the best first; none where none was graded."""
    grades = ranking.grades.get("loss", {})
    return sorted((name for name in ranking.methods if name in grades), key=lambda name: -grades[name].tau)[:count]


def _panel(axes: "Axes", utilities: Floats, ranking: LayerRanking, depths: Sequence[int]) -> None:
    layers = ranking.layers
    places = np.arange(layers + 1)
    best, median, worst = frontier(utilities)
    axes.fill_between(places, worst, best, color="#e8edf1", label="from the worst subset to the best")
    axes.plot(places, median, color=GREY, linestyle=":", linewidth=1.5, label="median subset")
    axes.plot(places, best, color=INK, linewidth=2, label="best subset")
    named = best_graded(ranking)
    for name, method in ranking.methods.items():
        chosen = along(utilities, order_by(method.scores))
        if name in named:
            colour, label = COLOURS[named.index(name)], f"top layers by {name.replace('_', ' ')}"
            axes.plot(places, chosen, color=colour, linewidth=1.4, marker="o", markersize=3.5, label=label, zorder=3)
        else:
            axes.plot(places, chosen, color="#9aa6b0", linewidth=0.7, alpha=0.8)
    chain = best_chain(utilities, depths)
    label = "best chain " + " < ".join(map(str, depths))
    axes.plot(depths, utilities[chain], linestyle="none", marker="D", markersize=8, color=CHAIN, label=label, zorder=4)
    for depth, mask in zip(depths, chain, strict=True):
        if depth < layers:
            most = depth > layers / 2
            shown = " ".join(map(str, layers_of((1 << layers) - 1 & ~mask if most else mask)))
            text = f"all but {shown}" if most else shown
            axes.annotate(text, (depth, utilities[mask]), (0, 9), textcoords="offset points", ha="center", size=7.5)
    axes.set_xlabel("layers that run", color=GREY)
    axes.set_xticks(places)
    axes.tick_params(labelsize=9, labelcolor=INK, color=GREY)
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
