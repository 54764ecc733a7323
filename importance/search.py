"""Finds which layers of a model to keep: for a size, for a latency, or for the quality that must stay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from torch import nn

from fathom.errors import ConfigError
from fathom.importance.compression import CompressionPlan, Measured, Subset, weights_mb
from fathom.importance.lattice.lattice import judge_subsets
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.models.pruning import check_prunable
from fathom.importance.models.stacks import parameters_of

#: A method whose order is that in which one layer after another goes.
GREEDY = "greedy_elimination"
#: Layers that fit exactly must not be lost to it.
ROUNDING = 1e-9
#: So many plans with the least loss are made and healed where healing decides.
FINALISTS = 3
#: Makes the model of a plan: ``apply`` alone, or healed.
Make = Callable[[CompressionPlan], nn.Module]
#: What some layers take of whatever is scarce.
Cost = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Target:
    """What a smaller model shall be; exactly one of these.

    ``ratio``: the layers have at least so many times fewer parameters. ``memory_mb``: all weights take at most so many
    megabytes (10^6 bytes). ``latency_ms``: one sample takes at most so long, in torch on this machine. ``min_quality``:
    at least this share of the whole model's metric stays, the first that the task reports, on the ranking's samples.
    """

    ratio: float | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None
    min_quality: float | None = None

    def __post_init__(self) -> None:
        given = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        if len(given) != 1:
            names = ", ".join(each.name for each in fields(self))
            raise ConfigError(f"give one target of {names}, not {len(given)}")
        value = getattr(self, given[0])
        if not value > 0 or (self.min_quality is not None and value > 1) or (self.ratio is not None and value <= 1):
            allowed = {"ratio": "above 1", "min_quality": "above 0 and at most 1"}.get(given[0], "above 0")
            raise ConfigError(f"{given[0]} is {value:g}; it must be {allowed}")


def find_plan(measured: Measured, ranking: LayerRanking, target: Target, make: Make) -> CompressionPlan:
    """The plan that reaches a target with the least loss.

    ``make``: makes the models whose quality is measured; where it heals them, the three plans with the least loss are
    made, and that one is taken which has the least loss then. For a latency or a quality the number of layers is
    searched by halving, as if fewer layers were never slower and never better. Raises ConfigError for a target that no
    plan reaches.
    """
    check_prunable(measured.layers)
    search = _Search(measured, ranking, make)
    if target.ratio is not None:
        return search.with_ratio(target.ratio)
    if target.memory_mb is not None:
        return search.within_memory(target.memory_mb)
    if target.latency_ms is not None:
        return search.within_latency(target.latency_ms)
    assert target.min_quality is not None
    return search.keeping_quality(target.min_quality)


@dataclass
class _Search:
    measured: Measured
    ranking: LayerRanking
    make: Make
    _kept: set[int] = field(default_factory=set)
    #: All layers, then what is left when one after another goes, as far as somebody asked.
    _left: list[Subset] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = [self.measured.layers.layers]

    def with_ratio(self, ratio: float) -> CompressionPlan:
        """Layers of so many times fewer parameters."""
        layers = self.measured.layers
        whole, model = layers.size(layers.layers), parameters_of([layers.model])
        most = whole / ratio * (1 + ROUNDING)
        return self._small_enough(
            most, lambda made: parameters_of([made]) <= model - whole + most, f"a ratio of {ratio:g}"
        )

    def within_memory(self, limit: float) -> CompressionPlan:
        """A model whose weights take no more megabytes."""
        layers = self.measured.layers
        total = weights_mb(layers.model)
        if total <= limit:
            raise ConfigError(f"the whole model takes {total:.3g} MB already; no layer has to go")
        largest = max(value.element_size() for value in layers.model.parameters())
        most = layers.size(layers.layers) - (total - limit) * 1e6 / largest
        return self._small_enough(most, lambda made: weights_mb(made) <= limit, f"{limit:g} MB of weights")

    def _small_enough(self, most: float, fits: Callable[[nn.Module], bool], wanted: str) -> CompressionPlan:
        """A plan that fits, whose layers have at most so many parameters.

        What is planned is not what is left where a layer stays for others that need it, or shares weights with the
        rest: a layer without which nothing is saved is kept from then on, else there are fewer and fewer parameters.
        """
        layers = self.measured.layers
        while True:
            plan, *others = self._plans(layers.size, most, wanted)
            if fits(plan.apply()):
                return self._best_healed([plan, *others], fits)
            gone = set(layers.layers) - set(plan.keep)
            useless = {layer for layer in gone if self._saves_nothing(layer)}
            if not useless:
                most = layers.size(plan.keep) - 1
            self._kept |= useless
            self._left = [layers.layers]

    def _saves_nothing(self, layer: int) -> bool:
        """Whether the model is as large without a layer."""
        layers = self.measured.layers
        others = tuple(other for other in layers.layers if other != layer)
        made = CompressionPlan(self.measured, others, 0.0, 0.0).apply()
        return parameters_of([made]) == parameters_of([layers.model])

    def within_latency(self, limit: float) -> CompressionPlan:
        """The most layers within a latency; measured again at the end, by more rounds, and fewer if need be."""
        measured = self.measured
        before = measured.latency_ms(measured.layers.model)
        if before <= limit:
            raise ConfigError(f"the whole model takes {before:.3g} ms already; no layer has to go")
        low, high = 1, len(measured.layers.layers) - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = measured.latency_ms(self.of_layers(middle).apply()) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        for count in range(low, 0, -1):
            plans = self._plans(len, count, f"{count} layers")
            found = measured.latency_ms(plans[0].apply(), rounds=15)
            if found <= limit:
                return self._best_healed(plans, lambda made: measured.latency_ms(made, rounds=15) <= limit)
        raise ConfigError(f"with one layer the model still takes {found:.3g} ms, more than {limit:g}")

    def keeping_quality(self, share: float) -> CompressionPlan:
        """The fewest layers that keep a quality."""
        _, metrics = self.measured.quality(self.measured.layers.model)
        metric = next(iter(metrics))
        if metrics[metric] <= 0:
            raise ConfigError(f"a share of {metric} cannot stay where the whole model has {metrics[metric]:.3g}")
        low, high, best = 1, len(self.measured.layers.layers), 0.0
        while low < high:
            middle = (low + high) // 2
            kept = self.measured.quality(self.make(self.of_layers(middle)))[1][metric] / metrics[metric]
            low, high, best = (low, middle, best) if kept >= share else (middle + 1, high, kept)
        if low == len(self.measured.layers.layers):
            raise ConfigError(f"without any layer less than {share:g} of the {metric} stays: {best:.3g} with {low - 1}")
        return self.of_layers(low)

    def of_layers(self, count: int) -> CompressionPlan:
        """A plan with so many layers."""
        return self._plans(len, count, f"{count} layers")[0]

    def _best_healed(self, plans: Sequence[CompressionPlan], fits: Callable[[nn.Module], bool]) -> CompressionPlan:
        """The first plan, or that of the first few which has the least loss once it is healed."""
        if self.make is CompressionPlan.apply:
            return plans[0]
        finalists = [plans[0], *(plan for plan in plans[1:FINALISTS] if fits(plan.apply()))]
        if len(finalists) == 1:
            return plans[0]
        return min(finalists, key=lambda plan: self.measured.quality(self.make(plan))[0])

    def _plans(self, cost: Cost, most: float, wanted: str) -> list[CompressionPlan]:
        """Which layers to keep that cost no more, the least loss first.

        These are the best layers by each method and by their consensus, the first layers, and what is left when one
        layer after another goes. Raises ConfigError where none is so small.
        """
        layers, batches = self.measured.layers, self.measured.batches
        if not 0 < most < cost(layers.layers):
            raise ConfigError(f"{wanted} cannot be had by leaving out some of {len(layers.layers)} layers")
        with layers:
            first = sorted(self._kept)
            orders = ([*first, *(layer for layer in order if layer not in self._kept)] for order in self._orders)
            candidates = {fitting(order, cost, most) for order in orders}
            if GREEDY not in self.ranking.methods:
                candidates.add(self._one_after_another(cost, most))
            candidates = {keep for keep in candidates if keep and self._kept <= set(keep)}
            if not candidates:
                raise ConfigError(f"{wanted} cannot be had: no single layer is as small as that")
            losses = losses_of([*candidates, layers.layers], layers, batches)
        whole, order = losses[layers.layers], self.ranking.consensus_order
        return [
            CompressionPlan(self.measured, keep, whole, losses[keep], order)
            for keep in sorted(candidates, key=lambda each: (losses[each], each))
        ]

    @cached_property
    def _orders(self) -> list[Sequence[int]]:
        ranking = self.ranking
        by_method = (np.argsort(method.ranks).tolist() for method in ranking.methods.values())
        return [ranking.consensus_order, self.measured.layers.layers, *by_method]

    def _one_after_another(self, cost: Cost, most: float) -> Subset:
        """What is left where that layer goes which is missed least, again and again, until the rest is small enough."""
        for kept in self._left:
            if cost(kept) <= most or not kept:
                return kept
            if kept is self._left[-1]:
                free = [layer for layer in kept if layer not in self._kept]
                if not free:
                    break
                fewer = [tuple(other for other in kept if other != layer) for layer in free]
                losses = losses_of(fewer, self.measured.layers, self.measured.batches)
                self._left.append(min(fewer, key=lambda each: losses[each]))
        return ()


def fitting(order: Sequence[int], cost: Cost, most: float) -> Subset:
    """Those of an order, from its first, that still cost no more than ``most``, in the order of the model."""
    kept: list[int] = []
    for layer in order:
        if cost([*kept, layer]) <= most:
            kept.append(layer)
    return tuple(sorted(kept))


def losses_of(subsets: Sequence[Subset], layers: ModuleLayers, batches: Sequence[ModuleBatch]) -> dict[Subset, float]:
    """The mean loss of the samples with only these layers."""
    # From 63 layers on a mask is no int64 any more.
    kind = np.int64 if len(layers.layers) < 63 else object
    masks = np.array([sum(1 << layer for layer in subset) for subset in subsets], dtype=kind)
    ascending, places = np.unique(masks, return_inverse=True)
    found = np.concatenate([judge_subsets(layers, batch, ascending)[0] for batch in batches])
    return dict(zip(subsets, found.mean(0, dtype=np.float64)[places].tolist(), strict=True))
