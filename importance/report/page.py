"""The page of a LayerRanking: one HTML file that holds all of it and needs nothing else, no network and no scripts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fathom.artefacts import RANKING_PAGE
from fathom.files import write_bytes
from fathom.importance.layer_ranking import Grade, LayerRanking
from fathom.importance.report.html import cells, document, number, spoken, table
from fathom.importance.report.plot import in_percent
from fathom.importance.statistics import TIERS, disagreements

if TYPE_CHECKING:
    from fathom.importance.lattice.lattice import Lattice

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
#: The colours of ranks, from last to first, and of Kendall's tau, from -1 over 0 to 1.
RANKS = ((238, 244, 240), (127, 205, 187), (44, 127, 184), (12, 44, 100))
TAUS = ((166, 54, 20), (244, 165, 130), (244, 246, 247), (116, 178, 216), (10, 70, 125))
MORE_THAN_A_FEW = 6

Colour = tuple[int, int, int]


def write_page(
    ranking: LayerRanking, path: Path, *, lattice: "Lattice | None" = None, depths: Sequence[int] = ()
) -> None:
    """Write the page, whole or not at all; ``lattice`` of the same users and ``depths`` for its best chain."""
    write_bytes(path, page(ranking, lattice=lattice, depths=depths).encode())


def page(ranking: LayerRanking, *, lattice: "Lattice | None" = None, depths: Sequence[int] = ()) -> str:
    """The page as HTML; equal input, equal text."""
    sections = [_head(ranking), _consensus(ranking), _tiers(ranking), _heat_map(ranking), _agreement(ranking)]
    sections.append(_methods(ranking))
    if lattice is not None:
        from fathom.importance.report.lattice import lattice_section

        sections.append(lattice_section(lattice, ranking, depths))
    sections.append(_left_out(ranking))
    return document("Layer importance", RANKING_PAGE.mark, "".join(sections))


def _head(ranking: LayerRanking) -> str:
    facts = {
        "layers": str(ranking.layers),
        "methods": str(len(ranking.methods)),
        "users": f"{ranking.users:,}",
        "seed": str(ranking.seed),
        "checkpoint": _short_sha(ranking.checkpoint),
        "data set": _short_sha(ranking.dataset),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f"<h1>Layer importance</h1>\n<dl>{listed}</dl>\n"


def _short_sha(sha: str | None) -> str:
    return "unknown" if sha is None else f'<code title="sha256 {escape(sha)}">{escape(sha[:12])}</code>'


def _consensus(ranking: LayerRanking) -> str:
    rankings = [method.ranks for method in ranking.methods.values()]
    pairs = len(rankings) * ranking.layers * (ranking.layers - 1) // 2
    orders = {"Borda: by the mean rank": ranking.consensus_order}
    if ranking.kemeny_order is not None:
        orders["Kemeny: the fewest disagreements with the methods"] = ranking.kemeny_order
    shown = [
        f"<h3>{title}</h3>\n"
        f'<ol class="order">{"".join(_layer(ranking, layer) for layer in order)}</ol>\n'
        f'<p class="grey">Orders {disagreements(order, rankings):,} of {pairs:,} pairs unlike the methods.</p>\n'
        for title, order in orders.items()
    ]
    if ranking.kemeny_order is None:
        shown.append('<p class="grey">No Kemeny order: it is exact, and so kept to 20 layers.</p>\n')
    return f"<h2>Consensus</h2>\n<p>Layers, the most important first.</p>\n{''.join(shown)}"


def _layer(ranking: LayerRanking, layer: int) -> str:
    tier = ranking.tier(layer)
    return f'<li class="{tier}" title="layer {layer}: {tier}">{layer}</li>'


def _tiers(ranking: LayerRanking) -> str:
    if not ranking.tiers:
        return ""
    rows = []
    for place, layer in enumerate(ranking.consensus_order, 1):
        shares = {tier: ranking.tiers[tier][layer] for tier in TIERS}
        parts = "".join(f'<i class="{tier}" style="width:{100 * share:.1f}%"></i>' for tier, share in shares.items())
        tier = ranking.tier(layer)
        kemeny = "–" if ranking.kemeny_order is None else str(ranking.kemeny_order.index(layer) + 1)
        shown = [tier, f'<div class="bar" aria-hidden="true">{parts}</div>', *map(number, shares.values())]
        rows.append(
            (
                f"layer {layer}{_path(ranking, layer)}",
                cells([*shown, str(place), kemeny, number(ranking.consensus_scores[layer])]),
            )
        )
    keys = [f'<span class="whole"><span class="key {tier}"></span> {tier}</span>' for tier in TIERS]
    head = ["layer", "tier", "probabilities", *keys, "Borda", "Kemeny", "score"]
    text = (
        "<p>The first quarter of the places in the consensus is critical, the last quarter redundant. A probability is "
        "the share of 2,000 bootstrap resamples of the users in which the consensus puts the layer there.</p>\n"
    )
    caption = "How sure the tier is, the place in both orders, and the Borda score (1 = first by every method)"
    return f"<h2>Tiers</h2>\n{text}{table('plain', caption, head, rows)}"


def _path(ranking: LayerRanking, layer: int) -> str:
    """Where a layer is in a model that is not ours."""
    return f" {ranking.layer_names[layer]}" if ranking.layer_names else ""


def _heat_map(ranking: LayerRanking) -> str:
    orders = {"consensus (Borda)": ranking.consensus_order, "consensus (Kemeny)": ranking.kemeny_order}
    rows = []
    for name, order in orders.items():
        if order is not None:
            ranks = [order.index(layer) + 1 for layer in range(ranking.layers)]
            rows.append((name, "".join(_rank(rank, ranking.layers, "") for rank in ranks)))
    tiers = [ranking.tier(layer) for layer in range(ranking.layers)]
    rows.append(("tier", "".join(f'<td class="{tier}"><span>{tier}</span></td>' for tier in tiers)))
    for name, method in ranking.methods.items():
        exact = zip(method.ranks, method.scores, method.low, method.high, in_percent(method), strict=True)
        found = [
            _rank(
                rank,
                ranking.layers,
                f"<span>{percent}</span><span>[{below}, {above}]</span>",
                f"{spoken(name)}, layer {layer}: {score:.4g}, 95 % interval {low:.4g} to {high:.4g}",
            )
            for layer, (rank, score, low, high, (percent, below, above)) in enumerate(exact)
        ]
        rows.append((spoken(name), "".join(found)))
    caption = (
        "Large: rank, 1 = most important. Small: score as % of the method's highest, and its 95 % bootstrap interval; "
        "pointing at a cell shows them as measured."
    )
    head = ["layer", *map(str, range(ranking.layers))]
    return f"<h2>Scores</h2>\n{table('heat', caption, head, rows, 'Scores of each layer by each method')}"


def _rank(rank: int, layers: int, notes: str, title: str = "") -> str:
    said = f' title="{title}"' if title else ""
    return f'<td style="{shade(RANKS, 1 - (rank - 1) / (layers - 1))}"{said}><b>{rank}</b>{notes}</td>'


def shade(stops: Sequence[Colour], share: float) -> str:
    """The style of a cell whose colour lies at ``share`` (0..1) of the way through ``stops``, with readable ink."""
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(at), len(stops) - 2)
    colour = [round(a + (at - left) * (b - a)) for a, b in zip(stops[left], stops[left + 1], strict=True)]
    ink = max(BLACK, WHITE, key=lambda ink: contrast(ink, colour))
    return f"background:{_hex(colour)};color:{_hex(ink)}"


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """The contrast of two colours, 1 to 21, as WCAG 2 defines it."""
    dark, light = sorted(_luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[int]) -> float:
    parts = [value / 255 for value in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def _agreement(ranking: LayerRanking) -> str:
    names = list(ranking.methods)
    if len(names) < 2:
        return ""
    rows = []
    for one in names:
        taus = [ranking.kendall_tau[one][other] for other in names]
        found = [f'<td style="{shade(TAUS, (tau + 1) / 2)}">{number(tau)}</td>' for tau in taus]
        others = fmean(ranking.kendall_tau[one][other] for other in names if other != one)
        rows.append((spoken(one), "".join(found) + f"<td>{number(others)}</td>"))
    kind = "taus tall" if len(names) > MORE_THAN_A_FEW else "taus"
    caption = "Kendall's tau between the scores of two methods: 1 = the same order, 0 = unrelated, -1 = reversed"
    head = ["method", *map(spoken, names), "mean with the others"]
    return f"<h2>Agreement</h2>\n{table(kind, caption, head, rows)}"


def _methods(ranking: LayerRanking) -> str:
    graded = {
        metric: title for metric, title in (("loss", "log p"), ("ndcg@10", "NDCG@10")) if metric in ranking.grades
    }
    head = ["method", "stability", "seconds"]
    is_whole = any(grade.regret for row in ranking.grades.values() for grade in row.values())
    for title in graded.values():
        head += [f"tau with the truth, {title}", *([f"regret, {title}"] if is_whole else [])]
    times = [(name, spoken(name), method.stability, method.seconds) for name, method in ranking.methods.items()]
    known = [(name, shown, number(stable), number(seconds, ".1f")) for name, shown, stable, seconds in times]
    known.append(("consensus", "consensus (Borda)", number(ranking.consensus_stability), "–"))
    rows = []
    for name, shown, *values in known:
        for metric in graded:
            values += _grade(ranking.grades[metric].get(name))[: 1 + is_whole]
        rows.append((shown, cells(values)))
    text = "Stability: mean Kendall's tau between a method's scores and those of bootstrap resamples of the same data."
    if graded:
        text += (
            f" Truth: the layers' Shapley values{'' if is_whole else ', estimated'} from {ranking.graded_against};"
            " tau with its 95 % interval."
        )
        if is_whole:
            text += " Regret: what the method's top layers lack against the best subset, mean over all sizes."
    caption = f"How stable{', how slow and how right' if graded else ' and how slow'} each method is"
    return f"<h2>Methods</h2>\n<p>{text}</p>\n{table('plain', caption, head, rows)}"


def _grade(grade: Grade | None) -> tuple[str, str]:
    if grade is None:
        return "–", "–"
    interval = f"[{number(grade.low, '+.2f')}, {number(grade.high, '+.2f')}]"
    lost = number(fmean(grade.regret.values()), ".4f") if grade.regret else "–"
    return f'{number(grade.tau, "+.2f")} <span class="grey">{interval}</span>', lost


def _left_out(ranking: LayerRanking) -> str:
    if not ranking.left_out:
        return ""
    reasons = [
        (spoken(name), f'<td style="text-align:left">{escape(why)}</td>') for name, why in ranking.left_out.items()
    ]
    return f"<h2>Left out</h2>\n{table('plain', 'Methods that were not measured', ['method', 'reason'], reasons)}"
