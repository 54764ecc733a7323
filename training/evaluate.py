"""Full-ranking evaluation: every item competes, seen items are left out, one right answer per user."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ConfigError, DataError
from fathom.training.baselines import BASELINES, EASE_MAX_ITEMS, Scorer, Scores
from fathom.training.context import Context
from fathom.training.counting import CountingExit, count, with_counting
from fathom.training.dataset import Dataset, Progress, Sequences
from fathom.training.metrics import RESAMPLES, Floats, Interval, intervals, per_user, percentile, ranks, top_items
from fathom.training.request_time import RequestTime
from fathom.training.splits import Cases, Split

if TYPE_CHECKING:
    from fathom.training.model import ElasticModel

SCHEMA_VERSION = 1
CUTOFFS = (5, 10, 20)
COVERAGE_CUTOFF = 10

SystemsScorer = Callable[[Sequences], Mapping[str, Scores]]  # several systems that share computation
Part = Literal["validation", "test"]


@dataclass(frozen=True)
class SystemReport:
    """One system: metrics with 95 % intervals, coverage, and its paired difference to the reference."""

    metrics: dict[str, Interval]
    coverage: float
    difference: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metrics": {name: value.as_dict() for name, value in self.metrics.items()},
            f"coverage@{COVERAGE_CUTOFF}": self.coverage,
            "difference": {name: value.as_dict() for name, value in self.difference.items()},
        }


@dataclass(frozen=True)
class EvaluationReport:
    """All systems on the same cases.

    unreachable: cases whose target the user had already seen; the filter leaves such an item out, so they
    count as misses for every system. per_user: system -> metric -> float64 (cases,), in the cases' order,
    for paired comparisons; places: system -> float64 (cases,), where the target stands, from 1; both stay out of the
    JSON. left_out: system -> why it was not run.
    """

    systems: dict[str, SystemReport]
    reference: str
    cases: int
    unreachable: int
    items: int
    seed: int
    resamples: int
    per_user: dict[str, dict[str, Floats]] = field(repr=False, compare=False)
    places: dict[str, Floats] = field(repr=False, compare=False)
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = ("cases", "unreachable", "items", "seed", "resamples", "reference")
        return {
            "schema_version": SCHEMA_VERSION,
            "protocol": "full ranking, seen items left out, ties by lowest item index",
            **{name: getattr(self, name) for name in numbers},
            "systems": {name: system.as_dict() for name, system in self.systems.items()},
            "left_out": self.left_out,
        }

    def table(
        self, metrics: tuple[str, ...] = ("hr@10", "ndcg@10", "mrr"), compared: str = "ndcg@10"
    ) -> list[list[str]]:
        """Rows of text, the header first: values with their intervals, coverage, difference to the reference."""
        header = ["system", *(name.upper() for name in metrics), f"coverage@{COVERAGE_CUTOFF}"]
        rows = [[*header, f"{compared.upper()} - {self.reference}"]]
        for name, system in self.systems.items():
            difference = "" if name == self.reference else _show(system.difference[compared], signed=True)
            cells = [_show(system.metrics[metric]) for metric in metrics]
            rows.append([name, *cells, f"{system.coverage:.3f}", difference])
        return rows


def named(name: str, scorer: Scorer) -> SystemsScorer:
    """A single scorer as the evaluator takes it."""
    return lambda histories: {name: scorer(histories)}


def evaluate(
    cases: Cases,
    scorers: Iterable[SystemsScorer],
    *,
    n_items: int,
    reference: str | None = None,
    filter_seen: bool = True,
    cutoffs: tuple[int, ...] = CUTOFFS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> EvaluationReport:
    """Rank each case's target among all items by every system's scores.

    The reference (default: the first system) is what the others are compared with, user by user. Raises
    DataError for no case or scores that are NaN or of the wrong shape, ConfigError for an unknown reference.
    """
    if len(cases) == 0:
        raise DataError("nothing to evaluate: no user has enough events for a case")
    places, covered = _ranked(cases, scorers, n_items, filter_seen, progress)
    users = {name: per_user(system, cutoffs) for name, system in places.items()}
    reference = next(iter(users)) if reference is None else reference
    if reference not in users:
        raise ConfigError(f"no system {reference!r} to compare with; there are: {', '.join(users)}")
    return EvaluationReport(
        systems=_summarise(users, covered, reference, resamples=resamples, seed=seed),
        reference=reference,
        cases=len(cases),
        unreachable=_seen_targets(cases) if filter_seen else 0,
        items=n_items,
        seed=seed,
        resamples=resamples,
        per_user=users,
        places=places,
    )


def _ranked(
    cases: Cases, scorers: Iterable[SystemsScorer], n_items: int, filter_seen: bool, progress: Progress
) -> tuple[dict[str, Floats], dict[str, NDArray[np.bool_]]]:
    """Of each system: the place of every case's target, from 1 (cases,), and which items it gave at all (items,)."""
    places: dict[str, Floats] = {}
    covered: dict[str, NDArray[np.bool_]] = {}
    for scorer in scorers:
        done = 0
        for rows in cases.chunks(n_items):
            histories = cases.histories.select(rows)
            found = scorer(histories)
            for name, scores in found.items():
                prepared = _prepared(name, scores, histories, n_items, filter_seen=filter_seen)
                places.setdefault(name, np.empty(len(cases)))[rows] = ranks(prepared, cases.targets[rows])
                best = top_items(prepared, COVERAGE_CUTOFF)
                covered.setdefault(name, np.zeros(n_items, dtype=np.bool_))[best[best >= 0]] = True
            done += len(rows)
            progress(f"{', '.join(found)}: {done:,} of {len(cases):,} users")
    return places, covered


def evaluate_model(
    model: "ElasticModel",
    dataset: Dataset,
    split: Split,
    *,
    part: Part = "test",
    counting: CountingExit | None = None,
    request_time: RequestTime | None = None,
    context: Context | None = None,
    baselines: Iterable[str] = tuple(BASELINES),
    device: str = "cpu",
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> EvaluationReport:
    """All exits of a model and the baselines on one part of a split, compared with the deepest exit.

    The baselines count everything before the part's targets: for the test that includes the validation
    items, which a model that stopped early by them has not learned from. EASE is left out, and the report
    says so, where the catalogue is too large for it.

    With ``counting`` the exits are judged as they are served: depth 0, the deeper ones with their part of counting,
    and as "depth N alone" without it. For the validation part its tables are counted again on the training part, but
    its settings and weights were chosen on these very items.

    ``request_time``: what the time since the newest event changes, each target's time being that of its request; then
    "depth N untimed" is what is served where that is not known. ``context``: the same of what the context of a request
    changes, and "depth N without context".
    """
    from fathom.training.scorer import depth_name, exit_scorer  # torch takes seconds to import

    networks = {"": exit_scorer(model, device, request_time, context)}
    if request_time is not None:
        networks[" untimed"] = exit_scorer(model, device, None, context)
    if context is not None:
        networks[" without context"] = exit_scorer(model, device, request_time)
    exits: dict[str, SystemsScorer] = {**networks}
    if counting is not None:
        if part == "validation":
            counting = replace(counting, tables=count(split.train, dataset.n_items, counting.tables.settings))
        exits = {end: with_counting(each, counting, alone=not end) for end, each in networks.items()}
    for end in [end for end in exits if end]:
        names = {depth_name(depth): depth_name(depth) + end for depth in model.depths}
        exits[end] = partial(_renamed, exits[end], names)
    known = split.train if part == "validation" else split.until_test
    fitted, left_out = _fitted(baselines, known, dataset.n_items, progress)
    report = evaluate(
        split.validation if part == "validation" else split.test,
        [*exits.values(), *fitted],
        n_items=dataset.n_items,
        reference=reference or depth_name(model.depths[-1]),
        resamples=resamples,
        seed=seed,
        progress=progress,
    )
    return replace(report, left_out=left_out)


def _renamed(scorer: SystemsScorer, names: Mapping[str, str], histories: Sequences) -> dict[str, Scores]:
    """The scores of some systems, under other names."""
    found = scorer(histories)
    return {name: found[system] for system, name in names.items()}


def _fitted(
    baselines: Iterable[str], known: Sequences, n_items: int, progress: Progress
) -> tuple[list[SystemsScorer], dict[str, str]]:
    """Baselines that have learned what is known, and why others were left out."""
    scorers, left_out = [], {}
    for name in baselines:
        if name not in BASELINES:
            raise ConfigError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
        if name == "EASE" and n_items > EASE_MAX_ITEMS:
            left_out[name] = f"the catalogue has more than {EASE_MAX_ITEMS:,} items"
            continue
        progress(f"fitting {name}")
        scorers.append(named(name, BASELINES[name](known, n_items)))
    return scorers, left_out


def _prepared(
    name: str, scores: Scores, histories: Sequences, n_items: int, *, filter_seen: bool
) -> NDArray[np.float32]:
    if scores.shape != (len(histories), n_items):
        raise DataError(f"{name}: scores of shape {scores.shape} instead of {(len(histories), n_items)}")
    if np.isnan(scores).any():
        raise DataError(f"{name}: some scores are not a number; the model has diverged, train it again")
    if filter_seen:
        scores = np.array(scores, dtype=np.float32)
        scores[histories.owners, histories.items] = -np.inf
    return scores


def _seen_targets(cases: Cases) -> int:
    owners = cases.histories.owners
    return len(np.unique(owners[cases.histories.items == cases.targets[owners]]))


def _summarise(
    users: dict[str, dict[str, Floats]],
    covered: dict[str, NDArray[np.bool_]],
    reference: str,
    *,
    resamples: int,
    seed: int,
) -> dict[str, SystemReport]:
    columns = {f"{name}/{metric}": values for name, by in users.items() for metric, values in by.items()}
    found, means = intervals(columns, resamples=resamples, seed=seed)
    drawn = dict(zip(columns, means.T, strict=True))
    reports = {}
    for name, metrics in users.items():
        difference = {}
        for metric, values in metrics.items():
            value = float((values - users[reference][metric]).mean())
            means_apart = drawn[f"{name}/{metric}"] - drawn[f"{reference}/{metric}"]
            difference[metric] = percentile(value, means_apart)
        reports[name] = SystemReport(
            metrics={metric: found[f"{name}/{metric}"] for metric in metrics},
            coverage=float(covered[name].mean()),
            difference=difference,
        )
    return reports


def _show(value: Interval, *, signed: bool = False) -> str:
    """``.1030 [.0950, .1110]``, or with a sign before each number."""
    centre, low, high = (f"{x:{'+' if signed else ''}.4f}".replace("0.", ".", 1) for x in value.as_dict().values())
    return f"{centre} [{low}, {high}]"
