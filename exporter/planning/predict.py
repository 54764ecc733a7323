"""What a lattice says of each plan before any is healed: the quality of the very layers that it would run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import PlanError
from fathom.exporter.planning.plan import DEFAULT_DEPTHS, DEFAULT_METRIC, STRATEGIES, DepthPlan, check_lattice
from fathom.importance.lattice.values import best_subsets, layers_of, mask_of
from fathom.importance.layer_ranking import LayerRanking
from fathom.training import metrics
from fathom.training.metrics import Interval

if TYPE_CHECKING:
    from fathom.importance.lattice.lattice import Lattice

#: What is predicted, by the lattice's name for it.
TITLES = {"ndcg@10": "NDCG@10", "loss": "log p"}
#: Beside the strategies: the best subset of each size that holds layer 0, by the metric itself; they need not nest.
BEST = "best"
OTHER_ORDER = "not in a lattice: it changes the order"

Paths = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class StrategyPrediction:
    """layers: what runs, in order; value: the mean over users, higher is better; difference: to ``prefix`` at the same
    depth, over the same users, with its 95 % bootstrap interval (None for ``prefix``).
    """

    layers: tuple[int, ...]
    value: float
    difference: Interval | None


@dataclass(frozen=True)
class StrategyPredictions:
    """by_metric: "ndcg@10" or "loss" (log p) -> strategy or "best" -> depth; left_out: strategy -> why it has none.

    Everything is read at the deepest exit, for no other exit has seen these layers. ``lattice`` and ``best`` are chosen
    by the users that they are judged on, which flatters them.
    """

    users: int
    depths: tuple[int, ...]
    by_metric: dict[str, dict[str, dict[int, StrategyPrediction]]]
    left_out: dict[str, str]

    def rows(self, metric: str) -> list[list[str]]:
        """One metric as rows of text: below each value its difference."""
        rows = [["strategy", *(f"depth {depth}" for depth in self.depths)]]
        for name, found in self.by_metric[metric].items():
            rows.append([name, *(_cell(found[depth]) for depth in self.depths)])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON; log p has its own name there, for it is no loss."""
        return {
            "users": self.users,
            "depths": list(self.depths),
            "predictions": {
                metric.replace("loss", "log_p"): {
                    name: {str(depth): asdict(prediction) for depth, prediction in found.items()}
                    for name, found in by_name.items()
                }
                for metric, by_name in self.by_metric.items()
            },
            "left_out": self.left_out,
        }


def predict(
    ranking: LayerRanking,
    lattice: "Lattice",
    depths: Sequence[int] = DEFAULT_DEPTHS,
    *,
    metric: str = DEFAULT_METRIC,
    seed: int = 0,
) -> StrategyPredictions:
    """What every strategy would reach at these depths; ``metric`` is what the ``lattice`` plan is chosen by.

    Raises PlanError for impossible depths, ArtefactError for a lattice that does not fit, see ``check_lattice``.
    """
    check_lattice(lattice, ranking)
    plans, left_out = _plans(ranking, lattice, depths, metric)
    by_metric = {}
    for each in TITLES:
        best = best_subsets(lattice.mean(each), keep=(0,))
        paths = plans | {BEST: {depth: layers_of(best[depth]) for depth in depths}}
        by_metric[each] = _predictions(lattice.utilities(each), paths, seed)
    return StrategyPredictions(len(lattice.losses), tuple(depths), by_metric, left_out)


def _plans(
    ranking: LayerRanking, lattice: "Lattice", depths: Sequence[int], metric: str
) -> tuple[dict[str, Paths], dict[str, str]]:
    """The paths of each plan that the lattice holds, and why it does not hold the others."""
    plans = {"prefix": dict(DepthPlan.make(ranking, "prefix", depths).paths)}
    left_out: dict[str, str] = {}
    for strategy in STRATEGIES[1:]:
        try:
            paths = dict(DepthPlan.make(ranking, strategy, depths, lattice=lattice, metric=metric).paths)
        except PlanError as error:  # the depths are possible: it is the ranking that lacks a method
            left_out[strategy] = str(error)
            continue
        if all(path == tuple(sorted(path)) for path in paths.values()):
            plans[strategy] = paths
        else:
            left_out[strategy] = OTHER_ORDER
    return plans, left_out


def _predictions(
    utilities: NDArray[np.float32], plans: dict[str, Paths], seed: int
) -> dict[str, dict[int, StrategyPrediction]]:
    def users(path: tuple[int, ...]) -> metrics.Floats:
        return utilities[:, mask_of(path)].astype(np.float64)

    def prediction(name: str, depth: int, path: tuple[int, ...]) -> StrategyPrediction:
        own, reference = users(path), users(plans["prefix"][depth])
        difference = None if name == "prefix" else metrics.paired_difference(own, reference, seed=seed)
        return StrategyPrediction(path, float(own.mean()), difference)

    return {
        name: {depth: prediction(name, depth, path) for depth, path in paths.items()} for name, paths in plans.items()
    }


def _cell(prediction: StrategyPrediction) -> str:
    value, difference = _decimal(prediction.value), prediction.difference
    if difference is None:
        return value
    if prediction.layers == tuple(range(len(prediction.layers))):
        return f"{value}\nthe layers of prefix"
    low, high = _decimal(difference.low, "+"), _decimal(difference.high, "+")
    return f"{value}\n{_decimal(difference.value, '+')} [{low}, {high}]"


def _decimal(value: float, sign: str = "") -> str:
    text = f"{round(value, 4) + 0.0:{sign}.4f}"  # + 0.0: no -0
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
