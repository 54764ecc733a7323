"""The pictures of docs/results.md, drawn from the pooled runs: the same runs give the same bytes."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.quality.arms import DEPTHS
from fathom.benchmarks.experiments.quality.stored import Pool, Pooled
from fathom.benchmarks.experiments.quality.tables import ENGINE_DATA, seeds, title

INK, GREY, FAINT = "#1b2733", "#5c6873", "#d5dade"
LADDER, ALONE = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, which the colour-blind can tell apart
SHADES = ("#9ecae1", "#4a98c9", "#1764ab", "#08214d")  # shallow to deep
BASELINES = ("popularity", "EASE", "transitions")
PANEL_INCH, COLUMNS = (3.7, 3.1), 3
LOWEST_SHOWN = 0.6  # of a learning curve's highest value: its end is what matters
STYLE: Any = {"svg.hashsalt": "fathom", "svg.fonttype": "none", "font.size": 9, "axes.labelcolor": GREY}


def svg(figure: Figure) -> bytes:
    """The picture as SVG, without a date or a random name in it."""
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def figures(pools: Sequence[Pool], engine: Mapping[str, Any]) -> dict[str, Figure]:
    """The pictures that the runs allow, by name. engine: the stored run of engine_depth."""
    laddered = [pool for pool in pools if "ladder" in pool.arms]
    with mpl.rc_context(STYLE):
        drawn = {}
        if laddered:
            drawn["quality-depth"] = _quality_depth(laddered)
            drawn["learning-curves"] = _learning_curves(laddered)
        for pool in laddered:
            if pool.dataset == ENGINE_DATA:
                drawn["quality-cost"] = _quality_cost(pool, engine)
    return drawn


def _quality_depth(pools: Sequence[Pool]) -> Figure:
    """Ladder and separately trained networks by depth; the best counting baseline as a line."""
    figure, panels = new_panels(len(pools))
    for axes, pool in zip(panels, pools, strict=True):
        ladder = {depth: pool.mean(("ladder", f"depth {depth}")) for depth in DEPTHS}
        alone = {depth: pool.mean((f"alone-{depth}", f"depth {depth}")) for depth in DEPTHS}
        _points(axes, ladder, -0.25, marker="o", color=LADDER, label="one network, its exits")
        _points(axes, alone, 0.25, marker="s", color=ALONE, label="a network for each depth", markerfacecolor="white")
        counted = [(mean.value, name) for name in BASELINES if (mean := pool.mean(("baselines", name))) is not None]
        if counted:
            best, name = max(counted)
            axes.axhline(best, color=GREY, linewidth=1, linestyle=":", label="best of the counting baselines")
            axes.annotate(name, (DEPTHS[0], best), (0, 3), textcoords="offset points", size=8, color=GREY)
        axes.set_title(f"{title(pool)}, {seeds(len(pool.of('ladder')))}", loc="left", size=10, color=INK)
        axes.set_xticks(DEPTHS)
        axes.set_xlabel("layers")
        axes.margins(y=0.15)
    return _explained(figure, panels, "NDCG@10")


def _points(axes: Axes, values: Mapping[int, Pooled | None], shift: float, **style: Any) -> None:
    """Values by depth with their intervals, moved aside a little so that two rows do not cover each other."""
    found = {depth: value for depth, value in values.items() if value is not None}
    if found:
        places = [depth + shift for depth in found]
        axes.errorbar(places, [v.value for v in found.values()], yerr=_bars(found.values()), linewidth=1.4, **style)


def _bars(values: Any) -> list[list[float]]:
    """How far the bounds are below and above, as matplotlib takes them."""
    return [[v.value - v.low for v in values], [v.high - v.value for v in values]]


def _quality_cost(pool: Pool, engine: Mapping[str, Any]) -> Figure:
    """NDCG@10 of each exit against the measured time of a request inside the engine."""
    figure, (axes,) = new_panels(1)
    milliseconds = {r["depth"]: r["median_us"] / 1e3 for r in engine["result"]["rows"] if r["history"] == 50}
    found = {depth: value for depth in DEPTHS if (value := pool.mean(("ladder", f"depth {depth}"))) is not None}
    places, heights = [milliseconds[depth] for depth in found], [value.value for value in found.values()]
    axes.errorbar(places, heights, yerr=_bars(found.values()), marker="o", linewidth=1.4, color=LADDER)
    for (depth, value), place in zip(found.items(), places, strict=True):
        axes.annotate(f"depth {depth}", (place, value.high), (0, 4), textcoords="offset points", ha="center", size=8)
    axes.set_title(f"{title(pool)}, {seeds(len(pool.of('ladder')))}", loc="left", size=10, color=INK)
    axes.set_xlim(0, 1.12 * max(places))
    axes.margins(y=0.15)
    axes.set_xlabel("ms in the engine, history 50, one thread")
    axes.set_ylabel("NDCG@10")
    return figure


def _learning_curves(pools: Sequence[Pool]) -> Figure:
    """Validation NDCG@10 of each exit over epochs, the mean over seeds; a line where the next stage starts."""
    figure, panels = new_panels(len(pools))
    for axes, pool in zip(panels, pools, strict=True):
        curves, starts = learning_curves(pool)
        for depth, colour in zip(DEPTHS, SHADES, strict=True):
            points = curves.get(str(depth), [])
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=f"depth {depth}")
        for start in starts:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"{title(pool)}, {seeds(len(pool.of('ladder')))}", loc="left", size=10, color=INK)
        axes.set_xlabel("epochs")
        axes.set_xlim(left=0)
        highest = max((value for curve in curves.values() for _, value in curve), default=1.0)
        axes.set_ylim(bottom=LOWEST_SHOWN * highest)
    return _explained(figure, panels, "validation NDCG@10")


def learning_curves(pool: Pool) -> tuple[dict[str, list[tuple[float, float]]], list[int]]:
    """Depth -> (epoch, mean over seeds) where every seed has a value, and the epochs at which a later stage starts."""
    runs = [run.value["result"]["training"] for run in pool.of("ladder")]
    curves: dict[str, list[tuple[float, float]]] = {}
    starts, before = [], 0
    for stage, entries in groupby(runs[0], key=lambda entry: str(entry["stage"])):
        last = before
        for entry in entries:
            same = [e for run in runs for e in run if (e["stage"], e["epoch"]) == (stage, entry["epoch"])]
            for depth in entry["validation_ndcg@10"] if len(same) == len(runs) else ():
                last = before + entry["epoch"]
                curves.setdefault(depth, []).append((last, fmean(e["validation_ndcg@10"][depth] for e in same)))
        starts.append(before)
        before = last
    return curves, starts[1:]


def _explained(figure: Figure, panels: Sequence[Axes], what: str) -> Figure:
    """The figure with one legend above all panels, and what their vertical axes show."""
    entries = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = 4 if len(panels) > 1 else 1
    figure.legend([*entries.values()], [*entries], loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel(what)
    return figure


def new_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side, COLUMNS in a row."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    width, height = PANEL_INCH
    figure = Figure(figsize=(width * columns + 0.5, height * rows + 0.4), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(length=0, labelcolor=GREY)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(grid.flat[:count])
