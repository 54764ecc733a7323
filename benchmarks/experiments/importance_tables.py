"""The section of docs/results.md about layer importance, and its picture, from ``results/importance/*.json``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.drawing import BLUE, FAINT, GREEN, GREY, INK, ORANGE, STYLE, legend_above, new_panels
from fathom.benchmarks.experiments.quality.stored import dataset_title, page_order
from fathom.benchmarks.experiments.quality.tables import seeds
from fathom.benchmarks.markdown import decimal, paragraphs, table, table_of
from fathom.importance.choice import Graded, choose_methods
from fathom.importance.lattice.grades import CONSENSUS
from fathom.importance.registry import DEFAULT
from fathom.importance.statistics import kendall_tau

PICTURE = "lattice-frontier"
FIRST = "the first layers (no method)"
ESTIMATES_THE_TRUTH = "shapley"
SHALLOW = 4  # layers; the size whose regret is shown
BUDGETS_S = (10, 60)


@dataclass(frozen=True)
class StoredNetwork:
    """One network whose every subset of layers was measured: its data set, seed, and what is stored of it."""

    dataset: str
    seed: int
    result: dict[str, Any]

    @property
    def graded(self) -> Graded:
        """What the choice of methods is made from."""
        return graded(self.result)

    def tau(self, name: str) -> float | None:
        """Kendall's tau of a method, or of the order of execution, with the exact values; None where it did not run."""
        if name == FIRST:
            truth = self.graded.truth
            return kendall_tau([-place for place in range(len(truth))], truth)
        grade = self.result["ranking"]["grades"]["loss"].get(name)
        return None if grade is None else float(grade["tau"])

    def lacks(self, name: str) -> float | None:
        """NDCG@10 of the best SHALLOW layers less that of a method's top SHALLOW layers; None where it did not run."""
        truth = self.result["truth"]["ndcg@10"]
        if name == FIRST:
            return float(truth["best"][SHALLOW] - truth["prefix"][SHALLOW])
        grade = self.result["ranking"]["grades"]["ndcg@10"].get(name)
        return None if grade is None else float(grade["regret"][str(SHALLOW)])


def graded(result: dict[str, Any]) -> Graded:
    """A stored network as the choice of methods sees it."""
    methods = result["ranking"]["methods"]
    return Graded(
        truth=result["truth"]["loss"]["shapley"]["value"],
        scores={name: method["scores"] for name, method in methods.items()},
        seconds={name: method["seconds"] for name, method in methods.items()},
        forward_seconds=result["seconds"]["forward"],
    )


def load_measured(folder: Path) -> list[StoredNetwork]:
    """All networks that are stored, in the order of the page."""
    runs = [json.loads(path.read_bytes()) for path in sorted((folder / "importance").glob("*.json"))]
    found = [StoredNetwork(run["config"]["dataset"], run["seed"], run["result"]) for run in runs]
    return sorted(found, key=lambda one: (page_order(one.dataset), one.seed))


def importance_section(measured: Sequence[StoredNetwork]) -> str:
    """All of the section, "" without runs."""
    if not measured:
        return ""
    ranking = measured[0].result["ranking"]
    users = " or ".join(map(str, sorted({one.result["ranking"]["users"] for one in measured})))
    about = (
        f"The truth: the quality of all {2 ** ranking['layers']:,} subsets of the {ranking['layers']} layers, on"
        f" {users} users for each network (`ladder`, not healed: a subset runs as it is). A method's grade"
        " is Kendall's tau between its scores and the exact Shapley values of the layers (log p of the right item), the"
        f" mean over seeds with the range. What {SHALLOW} layers lack: NDCG@10 of the best {SHALLOW} less that of the"
        f" method's top {SHALLOW}. Stability: tau between the scores of all users and those of a bootstrap resample."
        " Seconds: on one core."
    )
    picture = f"![{_CAPTION}](figures/{PICTURE}.svg)"
    parts = [_conclusion(measured), about, _methods(measured), _choices(measured), picture, _lattices(measured)]
    return paragraphs("## Layer importance: every method against the truth", *parts)


_CAPTION = "NDCG@10 by the number of layers that run: best, median and worst subset, and what is chosen"


def _by_dataset(measured: Sequence[StoredNetwork]) -> dict[str, list[StoredNetwork]]:
    return {one.dataset: [other for other in measured if other.dataset == one.dataset] for one in measured}


def _taus(measured: Sequence[StoredNetwork], name: str) -> list[float]:
    return [tau for one in measured if (tau := one.tau(name)) is not None]


def _lacks(measured: Sequence[StoredNetwork], name: str) -> str:
    return decimal(fmean(lack for one in measured if (lack := one.lacks(name)) is not None))


def _best_first(measured: Sequence[StoredNetwork]) -> list[str]:
    """Methods, consensus and the first layers, the best mean grade first."""
    names = {name for one in measured for name in one.result["ranking"]["grades"]["loss"]} | {FIRST}
    return sorted(names, key=lambda name: (-fmean(_taus(measured, name)), name))


def _methods_best_first(measured: Sequence[StoredNetwork]) -> list[str]:
    return [name for name in _best_first(measured) if name not in (CONSENSUS, FIRST)]


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _range(values: Sequence[float]) -> str:
    """The mean, and the lowest and highest."""
    return f"{_two(fmean(values))} ({_two(min(values))} to {_two(max(values))})" if values else ""


def _conclusion(measured: Sequence[StoredNetwork]) -> str:
    # Shapley's method estimates the truth itself from fewer subsets: its grade says how well, not that it judges best.
    methods = [name for name in _methods_best_first(measured) if name != ESTIMATES_THE_TRUTH]
    best, second = methods[:2]
    mean = {name: fmean(_taus(measured, name)) for name in _best_first(measured)}
    right = sum(min(_taus(measured, name)) > 0 for name in methods)
    ahead = sum(mean[name] > mean[FIRST] for name in methods)
    estimated = _taus(measured, ESTIMATES_THE_TRUTH)
    itself = (
        f" Not counted among them is {_readable(ESTIMATES_THE_TRUTH)} (mean tau {_two(fmean(estimated))}), which"
        " estimates these very values from fewer subsets."
    )
    return (
        f"Over {len(measured)} networks, {_readable(best)} orders the layers best (mean tau {_two(mean[best])}), before"
        f" {_readable(second)} ({_two(mean[second])}); {right} of {len(methods)} methods agree with the truth in every"
        f" network (tau above 0), and {ahead} order better than taking the layers as they run ({_two(mean[FIRST])})."
        f" The consensus of all methods reaches {_two(mean[CONSENSUS])}; against the best {SHALLOW} layers its top"
        f" {SHALLOW} lack {_lacks(measured, CONSENSUS)} of NDCG@10, those of {_readable(best)}"
        f" {_lacks(measured, best)} and simply the first {SHALLOW} {_lacks(measured, FIRST)}."
        f"{itself if estimated else ''}"
    )


def _methods(measured: Sequence[StoredNetwork]) -> str:
    head = ["method"]
    for dataset, own in _by_dataset(measured).items():
        head += [f"tau, {dataset_title(dataset)}, {seeds(len(own))}", f"{SHALLOW} layers lack"]
    rows = []
    for name in _best_first(measured):
        cells = [_readable(name)]
        for own in _by_dataset(measured).values():
            taus = _taus(own, name)
            cells += [_range(taus), _lacks(own, name) if taus else ""]
        known = [found for one in measured if (found := one.result["ranking"]["methods"].get(name)) is not None]
        if known:
            cells.append(_two(fmean(found["stability"] for found in known)))
            cells.append(f"{median(found['seconds'] for found in known):.1f}")
        rows.append(cells if known else [*cells, "", ""])
    return table([*head, "stability", "seconds"], rows)


def _choices(measured: Sequence[StoredNetwork]) -> str:
    rows = []
    for dataset, own in _by_dataset(measured).items():
        networks, others = [one.graded for one in own], [one.graded for one in measured if one.dataset != dataset]
        forward_s = median(network.forward_seconds for network in networks)
        available = set.intersection(*(set(network.scores) for network in networks))
        sets: dict[str, Sequence[str]] = {"the default": DEFAULT}
        for budget_s in BUDGETS_S if others else ():
            sets[f"auto, {budget_s} s"] = choose_methods(others, available, forward_s, budget_s)
        for name, chosen in sets.items():
            said = _range([network.tau(chosen) for network in networks])
            rows.append([dataset_title(dataset), name, ", ".join(map(_readable, chosen)), said])
    about = (
        "What `--methods auto` chooses for a time on one core, from the grades on the other data sets alone, and the"
        " grade of the consensus of those methods:"
    )
    return paragraphs(about, table(["", "methods", "which", "tau"], rows))


def _lattices(measured: Sequence[StoredNetwork]) -> str:
    rows = []
    for one in measured:
        truth = one.result["truth"]["ndcg@10"]
        row = {"name": f"{dataset_title(one.dataset)}, seed {one.seed}", "all": truth["best"][-1]}
        row |= one.result["one_by_one"] | {of: truth[of][SHALLOW] for of in ("best", "mean", "prefix")}
        row |= {what: seconds / 60 for what, seconds in one.result["seconds"].items()}
        row["layers"] = " ".join(map(str, truth["best_subsets"][SHALLOW]))
        row["sum_error"] = max(metric["sum_error"] for metric in one.result["truth"].values())
        rows.append(row)
    columns = (
        f"NDCG@10={{name}} | all layers={{all:decimal}} | best {SHALLOW}={{best:decimal}}"
        f" | mean of all {SHALLOW}={{mean:decimal}} | first {SHALLOW}={{prefix:decimal}}"
        f" | the best {SHALLOW}={{layers}} | largest difference={{largest_difference:.0e}}"
        " | Shapley sum: error={sum_error:.0e}"
        " | times faster={ratio:.1f} | minutes: lattice={lattice:.0f} | all methods={methods:.0f}"
    )
    about = (
        "The lattices, measured by two processes side by side. A sample of"
        f" {measured[0].result['one_by_one']['subsets']} subsets was also evaluated one by one: the largest difference"
        " of a user's loss, and how many times faster a subset is in the lattice. Shapley values must sum to full less"
        " empty."
    )
    return paragraphs(about, table_of(rows, columns))


def lattice_figure(measured: Sequence[StoredNetwork]) -> Figure:
    """NDCG@10 against the number of layers, a panel for the first seed of each data set."""
    shown = [own[0] for own in _by_dataset(measured).values()]
    best_method = _methods_best_first(measured)[0]
    with mpl.rc_context(STYLE):
        titles = [f"{dataset_title(one.dataset)}, seed {one.seed}" for one in shown]
        figure, panels = new_panels(titles, "layers that run", "NDCG@10, not healed")
        for one, axes in zip(shown, panels, strict=True):
            truth, grades = one.result["truth"]["ndcg@10"], one.result["ranking"]["grades"]["ndcg@10"]
            places = range(len(truth["best"]))
            axes.fill_between(places, truth["worst"], truth["best"], color=FAINT, label="worst to best subset")
            axes.plot(places, truth["median"], color=GREY, linestyle=":", linewidth=1.2, label="median subset")
            axes.plot(places, truth["best"], color=INK, linewidth=1.6, label="best subset")
            for name, grade in grades.items():
                if name not in (best_method, CONSENSUS):
                    axes.plot(*_chosen(truth["best"], grade["regret"]), color=GREY, linewidth=0.4)
            for name, colour, line in ((best_method, BLUE, "o-"), (CONSENSUS, ORANGE, "s-")):
                if name in grades:
                    chosen, label = _chosen(truth["best"], grades[name]["regret"]), f"top layers by {_readable(name)}"
                    axes.plot(*chosen, line, color=colour, markersize=3, linewidth=1.2, label=label)
            axes.plot(places, truth["prefix"], color=GREEN, linewidth=1.2, linestyle="--", label="the first layers")
            axes.set_xticks([place for place in places if place % 4 == 0])
        return legend_above(figure, panels[:1], 3)


def _chosen(best: Sequence[float], regret: dict[str, float]) -> tuple[list[int], list[float]]:
    """The number of layers, and the quality of so many chosen by a method."""
    counts = sorted(map(int, regret))
    return counts, [best[count] - regret[str(count)] for count in counts]
