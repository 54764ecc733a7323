"""The pictures of docs/results.md, drawn from the pooled runs: the same runs give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.drawing import BLUE, GREY, ORANGE, STYLE, legend_above, new_panels
from fathom.benchmarks.experiments.quality.arms import DEPTHS
from fathom.benchmarks.experiments.quality.stored import Pool, Pooled
from fathom.benchmarks.experiments.quality.tables import ENGINE_DATA, pictures, seeds, title

SHADES = ("#9ecae1", "#4a98c9", "#1764ab", "#08214d")  # shallow to deep
BASELINES = ("popularity", "EASE", "transitions")
LOWEST_SHOWN = 0.6  # of a learning curve's highest value: its end is what matters


def figures(pools: Sequence[Pool], engine: Mapping[str, Any]) -> dict[str, Figure]:
    """The pictures that the runs allow, by name. engine: the stored run of engine_depth."""
    laddered = [pool for pool in pools if "ladder" in pool.arms]
    drawn_by = {
        "quality-depth": lambda: _quality_depth(laddered),
        "learning-curves": lambda: _learning_curves(laddered),
        "quality-cost": lambda: _quality_cost(next(p for p in laddered if p.dataset == ENGINE_DATA), engine),
    }
    with mpl.rc_context(STYLE):
        return {name: drawn_by[name]() for name in pictures(pools)}


def _panels(pools: Sequence[Pool], xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    return new_panels([f"{title(pool)}, {seeds(len(pool.of('ladder')))}" for pool in pools], xlabel, ylabel)


def _quality_depth(pools: Sequence[Pool]) -> Figure:
    """Ladder and separately trained networks by depth; the best counting baseline as a line."""
    figure, panels = _panels(pools, "layers", "NDCG@10")
    for axes, pool in zip(panels, pools, strict=True):
        ladder = {depth: pool.mean(("ladder", f"depth {depth}")) for depth in DEPTHS}
        alone = {depth: pool.mean((f"alone-{depth}", f"depth {depth}")) for depth in DEPTHS}
        _points(axes, ladder, -0.25, marker="o", color=BLUE, label="one network, its exits")
        _points(axes, alone, 0.25, marker="s", color=ORANGE, label="a network for each depth", markerfacecolor="white")
        counted = [(mean.value, name) for name in BASELINES if (mean := pool.mean(("baselines", name))) is not None]
        if counted:
            best, name = max(counted)
            axes.axhline(best, color=GREY, linewidth=1, linestyle=":", label="best of the counting baselines")
            axes.annotate(name, (DEPTHS[0], best), (0, 3), textcoords="offset points", size=8, color=GREY)
        axes.set_xticks(DEPTHS)
        axes.margins(y=0.15)
    return legend_above(figure, panels, _legend_columns(panels))


def _legend_columns(panels: Sequence[Axes]) -> int:
    return 4 if len(panels) > 1 else 1


def _points(axes: Axes, values: Mapping[int, Pooled | None], shift: float, **style: Any) -> None:
    """Values by depth with their intervals, moved aside a little so that two rows do not cover each other."""
    found = {depth: value for depth, value in values.items() if value is not None}
    if found:
        places = [depth + shift for depth in found]
        axes.errorbar(places, [v.value for v in found.values()], yerr=_bars(found.values()), linewidth=1.4, **style)


def _bars(values: Iterable[Pooled]) -> list[list[float]]:
    """How far the bounds are below and above, as matplotlib takes them."""
    below, above = zip(*((v.value - v.low, v.high - v.value) for v in values), strict=True)
    return [list(below), list(above)]


def _quality_cost(pool: Pool, engine: Mapping[str, Any]) -> Figure:
    """NDCG@10 of each exit against the measured time of a request inside the engine."""
    figure, (axes,) = _panels([pool], "ms in the engine, history 50, one thread", "NDCG@10")
    milliseconds = {r["depth"]: r["median_us"] / 1e3 for r in engine["result"]["rows"] if r["history"] == 50}
    found = {depth: value for depth in DEPTHS if (value := pool.mean(("ladder", f"depth {depth}"))) is not None}
    places, heights = [milliseconds[depth] for depth in found], [value.value for value in found.values()]
    axes.errorbar(places, heights, yerr=_bars(found.values()), marker="o", linewidth=1.4, color=BLUE)
    for (depth, value), place in zip(found.items(), places, strict=True):
        axes.annotate(f"depth {depth}", (place, value.high), (0, 4), textcoords="offset points", ha="center", size=8)
    axes.set_xlim(0, 1.12 * max(places))
    axes.margins(y=0.15)
    return figure


def _learning_curves(pools: Sequence[Pool]) -> Figure:
    """Validation NDCG@10 of each exit over epochs, the mean over seeds; a line where the next stage starts."""
    figure, panels = _panels(pools, "epochs", "validation NDCG@10")
    for axes, pool in zip(panels, pools, strict=True):
        curves, starts = learning_curves(pool)
        for depth, colour in zip(DEPTHS, SHADES, strict=True):
            if points := curves.get(str(depth)):
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=f"depth {depth}")
        for start in starts:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlim(left=0)
        highest = max((value for curve in curves.values() for _, value in curve), default=1.0)
        axes.set_ylim(bottom=LOWEST_SHOWN * highest)
    return legend_above(figure, panels, _legend_columns(panels))


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
