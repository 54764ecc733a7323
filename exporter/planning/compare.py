"""Chooses the strategy to ship: the plan whose healed checkpoint is best on validation data.

The rule, fixed before any result is seen: of the plans whose mean over depths of NDCG@10 on the validation items (full
ranking) is not measurably below the best, the simplest: prefix, then permuted-prefix, then those that hold layers more
than once, in the order of what it takes to choose them: nested, greedy, lattice. Every plan's figures stay in the
manifest, each with its paired difference to the winner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fathom.errors import PlanError
from fathom.exporter.planning.heal import check_dataset
from fathom.exporter.planning.plan import Strategy
from fathom.runtime.manifest import MetricInterval
from fathom.training import metrics
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate_model
from fathom.training.metrics import Floats
from fathom.training.scorer import depth_name
from fathom.training.splits import split

METRIC = "ndcg@10"
SIMPLEST_FIRST: tuple[Strategy, ...] = ("prefix", "permuted-prefix", "nested", "greedy", "lattice")
MEAN = f"{METRIC}/mean"
DIFFERENCE = f"{METRIC}/mean-difference"

StrategyEvidence = dict[str, dict[str, MetricInterval]]


@dataclass(frozen=True)
class Comparison:
    """``winner`` is the strategy to ship.

    ``evidence``: strategy -> ``ndcg@10/DEPTH`` for each depth, ``ndcg@10/mean`` over depths, and
    ``ndcg@10/mean-difference``, that mean less the winner's over the same users (absent for the winner).
    """

    winner: Strategy
    evidence: StrategyEvidence


def compare(
    checkpoints: Mapping[Strategy, Checkpoint],
    dataset: Dataset,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Judge one healed checkpoint per strategy on the validation items of the same dataset.

    Raises PlanError when there is nothing to compare, or the depths or splits differ; ArtefactError for a checkpoint
    of another dataset.
    """
    _check(checkpoints, dataset)
    users: dict[Strategy, dict[int, Floats]] = {}
    for strategy, checkpoint in checkpoints.items():
        progress(f"validating {strategy}")
        model, cut = checkpoint.model, split(dataset, checkpoint.config.split)
        report = evaluate_model(model, dataset, cut, part="validation", baselines=(), seed=seed)
        users[strategy] = {depth: report.per_user[depth_name(depth)][METRIC] for depth in model.depths}
    means = {strategy: np.mean(list(by_depth.values()), axis=0) for strategy, by_depth in users.items()}
    winner = choose(means, seed=seed)
    evidence: StrategyEvidence = {}
    for strategy, by_depth in users.items():
        figures = {f"{METRIC}/{depth}": metrics.interval(values, seed=seed) for depth, values in by_depth.items()}
        figures[MEAN] = metrics.interval(means[strategy], seed=seed)
        if strategy != winner:
            figures[DIFFERENCE] = metrics.paired_difference(means[strategy], means[winner], seed=seed)
        evidence[strategy] = {key: MetricInterval(**value.as_dict()) for key, value in figures.items()}
    return Comparison(winner, evidence)


def choose(means: Mapping[Strategy, Floats], *, seed: int = 0) -> Strategy:
    """The simplest plan that is not measurably below the best. means: of each plan, per user, float64 (users,)."""
    best = max(means.values(), key=lambda values: float(values.mean()))
    equals = (s for s in means if metrics.paired_difference(means[s], best, seed=seed).high >= 0)
    return min(equals, key=SIMPLEST_FIRST.index)


def _check(checkpoints: Mapping[Strategy, Checkpoint], dataset: Dataset) -> None:
    if not checkpoints:
        raise PlanError("no plan to compare; heal at least one checkpoint")
    for strategy, checkpoint in checkpoints.items():
        check_dataset(checkpoint, dataset)
        if checkpoint.model.config.strategy != strategy:
            raise PlanError(f"the checkpoint given as {strategy} executes {checkpoint.model.config.strategy}")
    if len({(c.model.depths, c.config.split) for c in checkpoints.values()}) > 1:
        raise PlanError("plans can be compared only at the same depths and on the same split; heal them again")
