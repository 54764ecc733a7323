"""The part of the page that a lattice adds: what so many layers can give, what each choice gives, the best chain.

The pictures are drawn here as SVG, so that they take the page's colours, light or dark, and their words stay text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

import numpy as np

from fathom.importance.lattice.lattice import METRICS, Lattice
from fathom.importance.lattice.values import along, best_chain, frontier, layers_of
from fathom.importance.layer_ranking import LayerRanking, subsets_in_words
from fathom.importance.report.html import cells, number, spoken, table
from fathom.importance.report.lattice_plot import TITLES, best_graded
from fathom.importance.statistics import Floats, order_by

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
CONSENSUS = "consensus (Borda)"


@dataclass(frozen=True)
class _Axes:
    """From (layers that run, utility) to a place in the picture."""

    layers: int
    low: float
    high: float

    def x(self, layers: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * layers / self.layers

    def y(self, utility: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - utility) / (self.high - self.low)

    def points(self, utilities: Floats) -> str:
        return " ".join(f"{self.x(count):.1f},{self.y(value):.1f}" for count, value in enumerate(utilities))


def lattice_section(lattice: Lattice, ranking: LayerRanking, depths: Sequence[int]) -> str:
    """Frontier, choices and best chain by each metric, as HTML; of a sample, a line that says why there are none."""
    if not lattice.is_whole:
        measured = subsets_in_words(len(lattice.masks), lattice.layers)
        text = f"Measured: {measured}. Without every subset there is no frontier to draw."
        return f"<h2>Subsets of layers</h2>\n<p>{text}</p>\n"
    text = (
        f"Every one of the {len(lattice.masks):,} subsets of the layers was measured on the same users, without "
        "training any further. The line of a method is what its most important layers give, so many at a time."
    )
    parts = [_metric(lattice.mean(metric), metric, ranking, depths) for metric in METRICS[::-1]]
    legend = _legend(ranking)
    return f'<h2>Subsets of layers</h2>\n<p>{text}</p>\n{legend}<div class="two">\n{"".join(parts)}</div>\n'


def _metric(utilities: Floats, metric: str, ranking: LayerRanking, depths: Sequence[int]) -> str:
    chain = best_chain(utilities, depths)
    choices = {spoken(name): along(utilities, order_by(m.scores)) for name, m in ranking.methods.items()}
    choices[CONSENSUS] = along(utilities, ranking.consensus_order)
    if ranking.kemeny_order is not None:
        choices["consensus (Kemeny)"] = along(utilities, ranking.kemeny_order)
    named = {spoken(name): f"c{place}" for place, name in enumerate(best_graded(ranking))}
    title = escape(TITLES[metric])
    return (
        f"<section>\n<h3>{title}</h3>\n"
        + _picture(utilities, choices, named, depths, chain, title)
        + _choices(utilities, choices, depths, chain, title)
        + _chain(utilities, ranking.layers, depths, chain, title)
        + "</section>\n"
    )


def _picture(
    utilities: Floats,
    choices: Mapping[str, Floats],
    named: Mapping[str, str],
    depths: Sequence[int],
    chain: Sequence[int],
    title: str,
) -> str:
    best, median, worst = frontier(utilities)
    layers = len(best) - 1
    spare = (best.max() - worst.min() or 1.0) * 0.03
    axes = _Axes(layers, float(worst.min() - spare), float(best.max() + spare))
    band = axes.points(best) + " " + " ".join(axes.points(worst).split()[::-1])
    drawn = [*_grid(axes), f'<polygon class="band" points="{band}"/>']
    drawn.append(f'<polyline class="median" points="{axes.points(median)}"><title>median subset</title></polyline>')
    lines = sorted(choices, key=lambda name: (name in named, name == CONSENSUS))
    for name in lines:
        kind = f"own {named[name]}" if name in named else "consensus" if name == CONSENSUS else "other"
        drawn.append(f'<polyline class="{kind}" points="{axes.points(choices[name])}"><title>{name}</title></polyline>')
    drawn.append(f'<polyline class="best" points="{axes.points(best)}"><title>best subset</title></polyline>')
    for name in lines:
        kind = named.get(name, "consensus" if name == CONSENSUS else "other")
        drawn += [_dot(axes, count, float(value), kind, name) for count, value in enumerate(choices[name])]
    for depth, mask in zip(depths, chain, strict=True):
        x, y, which = axes.x(depth), axes.y(utilities[mask]), " ".join(map(str, layers_of(mask)))
        said = f"<title>best chain at {depth}: {utilities[mask]:.4f}, layers {which}</title>"
        diamond = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
        drawn.append(f'<polygon class="chain" points="{diamond}">{said}</polygon>')
    label = f"{title} against the number of layers that run; the tables below say the same in numbers"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="Picture: {title}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg></div>\n'
    )


def _grid(axes: _Axes) -> list[str]:
    drawn = []
    values = ticks(axes.low, axes.high)
    decimals = max(len(f"{value:g}".partition(".")[2]) for value in values)
    for value in values:
        y = axes.y(value)
        drawn.append(f'<line class="tick" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.{decimals}f}</text>')
    for count in range(axes.layers + 1):
        drawn.append(f'<text x="{axes.x(count):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{count}</text>')
    middle = axes.x(axes.layers / 2)
    return [*drawn, f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">layers that run</text>']


def ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Round values between two bounds, some ``about`` of them: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10((high - low) / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= about)
    first = int(np.ceil(low / step))
    return [round(place * step, 12) for place in range(first, int(np.floor(high / step)) + 1)]


def _dot(axes: _Axes, count: int, value: float, kind: str, name: str) -> str:
    said = f"<title>{name}, {count} layers: {value:.4f}</title>"
    size = 1.6 if kind == "other" else 2.8
    return f'<circle class="dot {kind}" cx="{axes.x(count):.1f}" cy="{axes.y(value):.1f}" r="{size}">{said}</circle>'


def _legend(ranking: LayerRanking) -> str:
    line, polygon = '<polyline class="{}" points="0,5 24,5"/>', '<polygon class="{}" points="{}"/>'
    kinds = {
        "from the worst subset to the best": polygon.format("band", "0,0 24,0 24,10 0,10"),
        "best subset": line.format("best"),
        "median subset": line.format("median"),
        "best chain": polygon.format("chain", "12,-1 18,5 12,11 6,5"),
        CONSENSUS: line.format("consensus"),
    }
    kinds |= {spoken(name): line.format(f"own c{place}") for place, name in enumerate(best_graded(ranking))}
    kinds["the other methods"] = line.format("other")
    items = [f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{mark}</svg>{name}</li>' for name, mark in kinds.items()]
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _choices(
    utilities: Floats, choices: Mapping[str, Floats], depths: Sequence[int], chain: Sequence[int], title: str
) -> str:
    best, median, worst = frontier(utilities)
    links = {depth: float(utilities[mask]) for depth, mask in zip(depths, chain, strict=True)}
    rows = [("best subset", cells(number(float(best[depth]), ".4f") for depth in depths))]
    rows.append(("best chain", cells(number(value, ".4f") for value in links.values())))
    total = {name: sum(float(values[depth]) for depth in depths) for name, values in choices.items()}
    for name in sorted(choices, key=lambda name: -total[name]):
        rows.append((name, cells(number(float(choices[name][depth]), ".4f") for depth in depths)))
    for name, values in (("median subset", median), ("worst subset", worst)):
        rows.append((name, cells(number(float(values[depth]), ".4f") for depth in depths)))
    caption = f"{title} of the layers chosen, the best choice first"
    return table("plain", caption, ["layers that run", *map(str, depths)], rows)


def _chain(utilities: Floats, layers: int, depths: Sequence[int], chain: Sequence[int], title: str) -> str:
    rows, before = [], 0
    for depth, mask in zip(depths, chain, strict=True):
        shown = [_cell(layer, mask, before) for layer in range(layers)]
        note = f'<td class="note">{number(float(utilities[mask]), ".4f")}</td>'
        rows.append((f"depth {depth}", "".join(shown) + note))
        before = mask
    caption = f"The best chain by {title}: each depth keeps the layers of the one before (●) and adds some (+)"
    return table("cells", caption, ["layer", *map(str, range(layers)), "quality"], rows)


def _cell(layer: int, mask: int, before: int) -> str:
    if before >> layer & 1:
        return '<td class="kept" title="kept">●</td>'
    return '<td class="new" title="added">+</td>' if mask >> layer & 1 else "<td></td>"
