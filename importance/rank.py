"""Measure every layer with every method, and put the results together as a LayerRanking."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from zlib import crc32

import numpy as np
import torch

from fathom.errors import ArtefactError, ConfigError, DataError, MissingExtraError, NotApplicableError
from fathom.importance import statistics
from fathom.importance.distribution import in_one_thread
from fathom.importance.interface import Batch, ImportanceMethod, LayeredModel, hidden_states
from fathom.importance.lattice.grades import CONSENSUS, Truth, grade
from fathom.importance.lattice.lattice import METRICS, Lattice
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.statistics import Floats
from fathom.pieces import PieceRunner, one_after_the_other


@dataclass(frozen=True)
class RankProgress:
    """A method, which is number ``number`` of ``methods``, has done with ``batch`` of ``batches``.

    A method may go through the batches more than once. share: of the whole work, 0 to 1, never falling; every method
    counts alike, and its batches count the first time.
    """

    method: str
    number: int
    methods: int
    batch: int
    batches: int
    share: float


Progress = Callable[[RankProgress], None]


def rank_layers(
    model: LayeredModel,
    batches: Sequence[Batch],
    methods: Mapping[str, ImportanceMethod],
    *,
    seed: int = 0,
    skip_inapplicable: bool = False,
    runner: PieceRunner = one_after_the_other,
    progress: Progress | None = None,
    lattice: Lattice | None = None,
    checkpoint: str | None = None,
    dataset: str | None = None,
) -> LayerRanking:
    """Score every layer of a model by each method on the same batches; equal seeds give equal results, by any runner.

    skip_inapplicable: leave out a method that cannot judge this model or lacks a library, and note why, instead of
    stopping. lattice: the truth about the same batches, to grade the methods by. checkpoint, dataset: sha256 to note in
    the result. Raises ConfigError when there is nothing to rank or to rank by, MissingExtraError without a library,
    DataError without data, ArtefactError when activations or scores are not finite.
    """
    layers, users = _layers_and_users(model, batches, methods)
    here = runner is one_after_the_other
    work = _Work(model, batches, seed, skip_inapplicable, len(methods), progress if here else None)
    pieces = [_Piece(number, name, method) for number, (name, method) in enumerate(methods.items(), 1)]
    found: dict[str, tuple[MethodScores, Floats] | str] = {}
    for piece, result in runner(partial(in_one_thread, _score), work, pieces):
        found[piece.name] = result
        if progress and not here:
            done = len(found)
            progress(RankProgress(piece.name, done, len(pieces), len(batches), len(batches), done / len(pieces)))
    left_out = {name: reason for name in methods if isinstance(reason := found[name], str)}
    scored = {name: result for name in methods if not isinstance(result := found[name], str)}
    if not scored:
        raise ConfigError(f"nothing to rank by: no method can judge this model here; {'; '.join(left_out.values())}")
    ranking = _put_together(scored, layers, users, seed, lattice)
    return replace(ranking, checkpoint=checkpoint, dataset=dataset, left_out=left_out)


def _layers_and_users(
    model: LayeredModel, batches: Sequence[Batch], methods: Mapping[str, ImportanceMethod]
) -> tuple[int, int]:
    """How many there are; raises where there is nothing to rank, or to rank by."""
    layers = len(model.layers)
    if sorted(model.layers) != list(range(layers)):
        raise ConfigError(f"the model does not run each of its layers once, but {list(model.layers)}; cannot rank them")
    if layers < 2:
        raise ConfigError(f"nothing to rank: the number of layers is {layers}, a ranking needs at least 2")
    if not methods:
        raise ConfigError("nothing to rank by: name at least one importance method")
    users = sum(model.samples(batch) for batch in batches)
    if users == 0:
        raise DataError("no users to rank layers on: the data holds no history")
    return layers, users


def _put_together(
    scored: Mapping[str, tuple[MethodScores, Floats]], layers: int, users: int, seed: int, lattice: Lattice | None
) -> LayerRanking:
    """Consensus, agreement, stability and grades of the methods' scores and rows (users, layers)."""
    measured = {name: scores for name, (scores, _) in scored.items()}
    agreement = {
        a: {b: statistics.kendall_tau(measured[a].scores, measured[b].scores) for b in measured} for a in measured
    }
    rankings = [method.ranks for method in measured.values()]
    consensus, least_disagreeing = statistics.borda(rankings), statistics.kemeny(rankings)
    drawn = {name: statistics.resampled_means(rows, seed=seed) for name, (_, rows) in scored.items()}
    drawn_consensus = statistics.resampled_borda(list(drawn.values()))
    graded = {name: rows for name, (_, rows) in scored.items()} | {CONSENSUS: np.array([consensus])}
    truths = {} if lattice is None else {metric: Truth.of(lattice, metric) for metric in METRICS}
    sizes = range(1, layers)
    return LayerRanking(
        layers=layers,
        checkpoint=None,
        dataset=None,
        users=users,
        seed=seed,
        methods={
            name: replace(m, stability=statistics.stability(drawn[name], m.scores)) for name, m in measured.items()
        },
        kendall_tau=agreement,
        consensus_scores=tuple(consensus),
        consensus_order=tuple(statistics.order_by(consensus)),
        grades={
            metric: {name: grade(scores, truth, sizes, seed=seed) for name, scores in graded.items()}
            for metric, truth in truths.items()
        },
        kemeny_order=None if least_disagreeing is None else tuple(least_disagreeing),
        tiers=statistics.tier_probabilities(drawn_consensus),
        consensus_stability=statistics.stability(drawn_consensus, consensus),
        graded_subsets=None if lattice is None else len(lattice.masks),
    )


@dataclass(frozen=True)
class _Work:
    """What all methods share; ``progress`` only where it can be called from."""

    model: LayeredModel
    batches: Sequence[Batch]
    seed: int
    skip_inapplicable: bool
    methods: int
    progress: Progress | None


@dataclass(frozen=True)
class _Piece:
    number: int
    name: str
    method: ImportanceMethod


def _score(work: _Work, piece: _Piece) -> tuple[MethodScores, Floats] | str:
    """A method's scores and rows, or why it was left out."""
    try:
        return _measure(piece.name, piece.method, work.model, _Watched(work, piece), work.seed)
    except (NotApplicableError, MissingExtraError) as error:
        if not work.skip_inapplicable:
            raise
        return str(error)


class _Watched:
    """The batches, reporting progress whenever a method has done with one."""

    def __init__(self, work: _Work, piece: _Piece) -> None:
        self._work, self._piece = work, piece
        self._most = 0

    def __iter__(self) -> Iterator[Batch]:
        work, piece, batches = self._work, self._piece, len(self._work.batches)
        for done, batch in enumerate(work.batches, 1):
            yield batch
            self._most = max(self._most, done)
            if work.progress:
                share = (piece.number - 1 + self._most / batches) / work.methods
                work.progress(RankProgress(piece.name, piece.number, work.methods, done, batches, share))


def _measure(
    name: str, method: ImportanceMethod, model: LayeredModel, batches: Iterable[Batch], seed: int
) -> tuple[MethodScores, Floats]:
    # The stream depends on the method's name, so that adding a method does not change the others' results.
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
    started = time.perf_counter()
    try:
        rows = method.scores(model, batches, generator).detach().cpu().double().numpy()
    except (ValueError, RuntimeError):  # libraries refuse NaN in their own words
        _check_model(model, batches)
        raise
    seconds = time.perf_counter() - started
    _check(name, rows, model, batches)
    low, high = statistics.bootstrap_interval(rows, seed=seed)
    scores = rows.mean(0)
    found = MethodScores(
        _floats(scores), _floats(low), _floats(high), tuple(statistics.ranks_of(scores)), round(seconds, 3)
    )
    return found, rows


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(values.tolist())


def _check(name: str, rows: Floats, model: LayeredModel, batches: Iterable[Batch]) -> None:
    layers = len(model.layers)
    if rows.ndim != 2 or rows.shape[1] != layers or len(rows) == 0:
        raise ConfigError(f"importance method {name!r} returned shape {rows.shape}, not (samples, {layers} layers)")
    if np.isfinite(rows).all():
        return
    _check_model(model, batches)
    bad = np.flatnonzero(~np.isfinite(rows).all(0))
    raise NotApplicableError(f"importance method {name!r} gave NaN or infinity for layers {bad.tolist()}; leave it out")


def _check_model(model: LayeredModel, batches: Iterable[Batch]) -> None:
    with torch.no_grad():
        cause = next((cause for batch in batches if (cause := _not_finite(model, batch))), None)
    if cause:
        raise ArtefactError(f"{cause} is NaN or infinite; the model cannot be ranked, train it again")


def _not_finite(model: LayeredModel, batch: Batch) -> str | None:
    """Where a batch first leaves the finite numbers, looking at real positions only."""
    real = model.real_positions(batch)
    places = ["the embedding", *(f"the output of layer {layer}" for layer in model.layers)]
    states = hidden_states(model, batch)
    for place, state in zip(places, states, strict=True):
        if not torch.isfinite(state[real]).all():
            return place
    return None if torch.isfinite(model.losses(batch, states[-1])).all() else "the loss"
