"""Measure every layer with every method, and put the results together as a LayerRanking."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.importance.grades import CONSENSUS, Truth, grade
from fathom.importance.interface import Batch, ImportanceMethod, LayeredModel, hidden_states
from fathom.importance.lattice import METRICS, Lattice
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.statistics import (
    Floats,
    bootstrap_interval,
    borda,
    kemeny,
    kendall_tau,
    order_by,
    ranks_of,
    resampled_borda,
    resampled_means,
    stability,
    tier_probabilities,
)

Progress = Callable[[str, int, int], None]
"""Called as (method, batches done, batches in all)."""


def rank_layers(
    model: LayeredModel,
    batches: Sequence[Batch],
    methods: Mapping[str, ImportanceMethod],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    lattice: Lattice | None = None,
    checkpoint: str | None = None,
    dataset: str | None = None,
) -> LayerRanking:
    """Score every layer of a model by each method on the same batches; equal seeds give equal results.

    lattice: the truth about the same batches, to grade the methods by. checkpoint, dataset: sha256 to note in the
    result. Raises ConfigError when there is nothing to rank, DataError without data, ArtefactError when activations or
    scores are not finite.
    """
    layers = len(model.layers)
    if sorted(model.layers) != list(range(layers)):
        raise ConfigError(f"the model does not run each of its layers once, but {list(model.layers)}; cannot rank them")
    if layers < 2:
        raise ConfigError(f"nothing to rank: the number of layers is {layers}, a ranking needs at least 2")
    if not methods:
        raise ConfigError("nothing to rank by: name at least one importance method")
    users = sum(len(model.real_positions(batch)) for batch in batches)
    if users == 0:
        raise DataError("no users to rank layers on: the data holds no history")
    measured, rows = {}, {}
    for name, method in methods.items():
        measured[name], rows[name] = _measure(name, method, model, batches, seed, progress)
    agreement = {a: {b: kendall_tau(measured[a].scores, measured[b].scores) for b in measured} for a in measured}
    rankings = [method.ranks for method in measured.values()]
    consensus, least_disagreeing = borda(rankings), kemeny(rankings)
    drawn = {name: resampled_means(values, seed=seed) for name, values in rows.items()}
    measured = {name: replace(m, stability=stability(drawn[name], m.scores)) for name, m in measured.items()}
    drawn_consensus = resampled_borda(list(drawn.values()))
    graded = rows | {CONSENSUS: np.array([consensus])}
    truths = {} if lattice is None else {metric: Truth.of(lattice, metric) for metric in METRICS}
    sizes = range(1, layers)
    return LayerRanking(
        layers=layers,
        checkpoint=checkpoint,
        dataset=dataset,
        users=users,
        seed=seed,
        methods=measured,
        kendall_tau=agreement,
        consensus_scores=tuple(consensus),
        consensus_order=tuple(order_by(consensus)),
        grades={
            metric: {name: grade(scores, truth, sizes, seed=seed) for name, scores in graded.items()}
            for metric, truth in truths.items()
        },
        kemeny_order=None if least_disagreeing is None else tuple(least_disagreeing),
        tiers=tier_probabilities(drawn_consensus),
        consensus_stability=stability(drawn_consensus, consensus),
    )


class _Watched:
    """The batches, reporting progress whenever a method has done with one."""

    def __init__(self, batches: Sequence[Batch], name: str, progress: Progress | None) -> None:
        self._batches, self._name, self._progress = batches, name, progress

    def __iter__(self) -> Iterator[Batch]:
        for done, batch in enumerate(self._batches):
            yield batch
            if self._progress:
                self._progress(self._name, done + 1, len(self._batches))


def _measure(
    name: str,
    method: ImportanceMethod,
    model: LayeredModel,
    batches: Sequence[Batch],
    seed: int,
    progress: Progress | None,
) -> tuple[MethodScores, Floats]:
    # The stream depends on the method's name, so that adding a method does not change the others' results.
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
    started = time.perf_counter()
    rows = method.scores(model, _Watched(batches, name, progress), generator).detach().cpu().double().numpy()
    seconds = time.perf_counter() - started
    _check(name, rows, model, batches)
    low, high = bootstrap_interval(rows, seed=seed)
    scores = rows.mean(0)
    found = MethodScores(_floats(scores), _floats(low), _floats(high), tuple(ranks_of(scores)), round(seconds, 3))
    return found, rows


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(values.tolist())


def _check(name: str, rows: Floats, model: LayeredModel, batches: Sequence[Batch]) -> None:
    layers = len(model.layers)
    if rows.ndim != 2 or rows.shape[1] != layers or len(rows) == 0:
        raise ConfigError(f"importance method {name!r} returned shape {rows.shape}, not (samples, {layers} layers)")
    if np.isfinite(rows).all():
        return
    with torch.no_grad():
        cause = next((cause for batch in batches if (cause := _not_finite(model, batch))), None)
    if cause:
        raise ArtefactError(f"{cause} is NaN or infinite; the model cannot be ranked, train it again")
    bad = np.flatnonzero(~np.isfinite(rows).all(0))
    raise ArtefactError(f"importance method {name!r} gave NaN or infinity for layers {bad.tolist()}; leave it out")


def _not_finite(model: LayeredModel, batch: Batch) -> str | None:
    """Where a batch first leaves the finite numbers, looking at real positions only."""
    real = model.real_positions(batch)
    places = ["the embedding", *(f"the output of layer {layer}" for layer in model.layers)]
    states = hidden_states(model, batch)
    for place, state in zip(places, states, strict=True):
        if not torch.isfinite(state[real]).all():
            return place
    return None if torch.isfinite(model.losses(batch, states[-1])).all() else "the loss"
