"""Finds which layers of a model to keep: for a size, for a latency, or for the quality that must be kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from torch import nn

from fathom.errors import ConfigError, NotApplicableError
from fathom.importance.compression import CompressionPlan, Measured, Subset, weights_mb
from fathom.importance.lattice.lattice import judge_subsets
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.layered import ModuleLayers

#: A method whose order is that in which one layer after another goes.
GREEDY = "greedy_elimination"
#: Makes the model of a plan: ``apply`` alone, or healed.
Make = Callable[[CompressionPlan], nn.Module]


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
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise ConfigError(f"give one target of {names}, not {len(given)}")
        value = getattr(self, given[0])
        if not value > 0 or (self.min_quality is not None and value > 1) or (self.ratio is not None and value <= 1):
            allowed = {"ratio": "above 1", "min_quality": "above 0 and at most 1"}.get(given[0], "above 0")
            raise ConfigError(f"{given[0]} is {value:g}; it must be {allowed}")


def find_plan(measured: Measured, ranking: LayerRanking, target: Target, make: Make) -> CompressionPlan:
    """The plan that reaches a target with the least loss; ``make`` makes the models whose quality is measured.

    A latency or a quality is searched by halving over the size of the layers, and what is found is measured once more.
    Raises ConfigError for a target that no plan reaches.
    """
    layers = measured.layers
    layers.check_apart()
    whole = layers.size(layers.layers)
    if target.ratio is not None:
        return _plan(measured, ranking, whole / target.ratio, f"a ratio of {target.ratio:g}")
    if target.memory_mb is not None:
        return _within_memory(measured, ranking, target.memory_mb)
    steps = len(layers.layers)

    @cache
    def plan_at(step: int) -> CompressionPlan:
        """One with so many parts of the layers' size."""
        return _plan(measured, ranking, whole * step / steps, f"{step} of {steps} parts of the layers")

    if target.latency_ms is not None:
        return _within_latency(measured, plan_at, steps, target.latency_ms)
    assert target.min_quality is not None
    return _keeping_quality(measured, plan_at, steps, target.min_quality, make)


def _within_memory(measured: Measured, ranking: LayerRanking, limit: float) -> CompressionPlan:
    layers = measured.layers
    total, whole = weights_mb(layers.model), layers.size(layers.layers)
    if total <= limit:
        raise ConfigError(f"the whole model takes {total:.3g} MB already; no layer has to go")
    value = next(iter(layers.layer_parameters(0).values())).element_size() / 1e6
    left = (limit - (total - whole * value)) / value
    if left < min(layers.size([layer]) for layer in layers.layers):
        raise ConfigError(f"memory_mb is {limit:g}, and {total - whole * value:.3g} MB lie outside of the layers")
    return _plan(measured, ranking, left, f"a memory of {limit:g} MB")


def _within_latency(
    measured: Measured, plan_at: Callable[[int], CompressionPlan], steps: int, limit: float
) -> CompressionPlan:
    """The largest plan within a latency; measured again at the end, by more rounds, and made smaller if need be."""
    before = measured.latency_ms(measured.layers.model)
    if before <= limit:
        raise ConfigError(f"the whole model takes {before:.3g} ms already; no layer has to go")
    low, high = 1, steps - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = measured.latency_ms(plan_at(middle).apply()) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    for step in range(low, 0, -1):
        found = measured.latency_ms(plan_at(step).apply(), rounds=15)
        if found <= limit:
            return plan_at(step)
    raise ConfigError(f"latency_ms is {limit:g}, and the smallest plan still takes {found:.3g} ms")


def _keeping_quality(
    measured: Measured, plan_at: Callable[[int], CompressionPlan], steps: int, share: float, make: Make
) -> CompressionPlan:
    """The smallest plan that keeps a quality."""
    _, metrics = measured.quality(measured.layers.model)
    metric = next(iter(metrics))
    if metrics[metric] <= 0:
        raise NotApplicableError(f"min_quality needs a metric above 0; the model's {metric} is {metrics[metric]:.3g}")

    @cache
    def kept(step: int) -> float:
        return measured.quality(make(plan_at(step)))[1][metric] / metrics[metric]

    low, high = 1, steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) >= share else (middle + 1, high)
    if low == steps:
        raise ConfigError(f"min_quality is {share:g}, and the largest plan keeps {kept(steps - 1):.3g} of the {metric}")
    return plan_at(low)


def _plan(measured: Measured, ranking: LayerRanking, most: float, wanted: str) -> CompressionPlan:
    """The layers to keep of at most so many parameters.

    Candidates are the best layers by each method and by their consensus, the first layers, and what is left when one
    layer after another goes; the one with the least loss is taken. Raises ConfigError where none is small enough.
    """
    layers, batches = measured.layers, measured.batches
    # Layers that fit exactly must not be lost to rounding.
    most *= 1 + 1e-9
    if not 0 < most < layers.size(layers.layers):
        raise ConfigError(f"{wanted} cannot be had by leaving out some of {len(layers.layers)} layers")
    orders = [
        ranking.consensus_order,
        layers.layers,
        *(tuple(np.argsort(method.ranks).tolist()) for method in ranking.methods.values()),
    ]
    with layers:
        candidates = {that_fit(order, layers, most) for order in orders}
        if GREEDY not in ranking.methods:
            candidates.add(_one_after_another(layers, batches, most))
        candidates.discard(())
        if not candidates:
            raise ConfigError(f"no single layer is as small as {wanted} asks for")
        losses = _losses_of([*candidates, layers.layers], layers, batches)
    keep = min(candidates, key=lambda each: (losses[each], each))
    return CompressionPlan(measured, keep, losses[layers.layers], losses[keep])


def that_fit(order: Sequence[int], layers: ModuleLayers, most: float) -> Subset:
    """Those of an order, from its first, that still fit into ``most``, in the order of the model."""
    kept: list[int] = []
    for layer in order:
        if layers.size([*kept, layer]) <= most:
            kept.append(layer)
    return tuple(sorted(kept))


def _one_after_another(layers: ModuleLayers, batches: Sequence[ModuleBatch], most: float) -> Subset:
    """What is left where that layer goes which is missed least, again and again, until the rest is small enough."""
    kept = layers.layers
    while layers.size(kept) > most and len(kept) > 1:
        fewer = [tuple(other for other in kept if other != layer) for layer in kept]
        losses = _losses_of(fewer, layers, batches)
        kept = min(fewer, key=lambda each: losses[each])
    return kept if layers.size(kept) <= most else ()


def _losses_of(subsets: Sequence[Subset], layers: ModuleLayers, batches: Sequence[ModuleBatch]) -> dict[Subset, float]:
    """The mean loss of the samples with only these layers."""
    # From 63 layers on a mask is no int64 any more.
    kind = np.int64 if len(layers.layers) < 63 else object
    masks = np.array([sum(1 << layer for layer in subset) for subset in subsets], dtype=kind)
    ascending, places = np.unique(masks, return_inverse=True)
    found = np.concatenate([judge_subsets(layers, batch, ascending)[0] for batch in batches])
    return dict(zip(subsets, found.mean(0, dtype=np.float64)[places].tolist(), strict=True))
