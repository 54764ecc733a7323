"""Checks engine files against the torch model that they came from, on real histories."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.errors import DataError, ParityError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.items import item_vectors
from fathom.runtime.manifest import Parity
from fathom.training.batches import history_batches
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel

MAX_ABS_ERROR = 1e-4
MIN_TOP10_AGREEMENT = 0.999
TOP = 10
#: Items whose torch scores are closer than this may change places: a float32 sum of products cannot order them.
TIE = 1e-6
#: Beyond so many users, or users x items, they are sampled evenly: more costs minutes and tells nothing new.
MAX_USERS = 10_000
MAX_SCORES = 1_000_000_000
_TOKENS = 6_400
_ROWS_PER_LENGTH = 4
_ROWS_PER_RANKING = 64

Vectors = NDArray[np.float32]


@dataclass
class DepthParity:
    """One depth: the largest error of the user vector over ``histories``, and top 10s over ``users``.

    ``agreed``: the same items in the same order, but for ties (see TIE); ``identical``: without that exception.
    """

    max_abs_error: float = 0.0
    histories: int = 0
    users: int = 0
    agreed: int = 0
    identical: int = 0

    @property
    def top10_agreement(self) -> float:
        """Share of users whose top 10 agrees."""
        return self.agreed / self.users

    def for_manifest(self) -> Parity:
        """As the manifest keeps it."""
        return Parity(max_abs_error=self.max_abs_error, top10_agreement=self.top10_agreement, histories=self.histories)


def measure_parity(
    model: ElasticModel,
    engines: EngineSet,
    histories: Sequences,
    *,
    every_length: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[int, DepthParity]:
    """Compare the user vectors of all depths, and the ten items they lead to, on these histories.

    The reference is ``model.forward``, which computes every position, so that the path for the last position alone is
    checked too. First all users, padded in batches, seen items left out of the top 10; then single lengths from 1 to
    ``max_history`` (each one with ``every_length``, else about thirty). The engines' answers are looked up among the
    item vectors that they read. ``progress`` is called as (histories and lengths done, all of them).
    Raises ParityError where a vector is NaN, DataError without histories.
    """
    if len(histories) == 0:
        raise DataError("no history to check the engines with: no user has enough events for a case")
    pair = np.asarray(item_vectors(model)), np.asarray(engines.vectors)
    tallies = {depth: DepthParity() for depth in model.depths}
    chosen = _evenly(histories, min(MAX_USERS, max(1_000, MAX_SCORES // len(pair[0]))))
    lengths = history_lengths(model.config.max_history, every=every_length)
    done, total = 0, len(chosen) + len(lengths)
    for rows, ids, times in history_batches(chosen, max_history=model.config.max_history, tokens=_TOKENS):
        seen = chosen.select(rows)
        for depth, (expected, found) in _compare(model, engines, tallies, ids, times).items():
            _compare_top(tallies[depth], expected, found, pair, seen)
        done += len(rows)
        progress(done, total)
    for ids, times in _of_each_length(chosen, lengths):
        _compare(model, engines, tallies, ids, times)
        done += 1
        progress(done, total)
    return tallies


def check_parity(parity: Mapping[int, DepthParity]) -> None:
    """Raise ParityError where an engine is further from torch than MAX_ABS_ERROR or MIN_TOP10_AGREEMENT allow."""
    advice = "export again; if it stays, report it with the versions of torch and onnxruntime"
    for depth, found in sorted(parity.items()):
        if not found.max_abs_error <= MAX_ABS_ERROR:
            raise ParityError(
                f"depth {depth}: the engine's user vector is off by {found.max_abs_error:.2g} from the model's,"
                f" more than {MAX_ABS_ERROR:g}; {advice}"
            )
        if found.top10_agreement < MIN_TOP10_AGREEMENT:
            raise ParityError(
                f"depth {depth}: only {found.top10_agreement:.2%} of users get the same top {TOP} from the engine as"
                f" from the model, less than {MIN_TOP10_AGREEMENT:.1%}; {advice}"
            )


def history_lengths(max_history: int, *, every: bool) -> tuple[int, ...]:
    """1..max_history, or about thirty of them: the small ones, the largest, and rising steps between."""
    if every:
        return tuple(range(1, max_history + 1))
    steps = np.unique(np.geomspace(1, max_history, 30).round().astype(int))
    return tuple(steps.tolist())


def _compare(
    model: ElasticModel, engines: EngineSet, tallies: Mapping[int, DepthParity], items: Tensor, times: Tensor | None
) -> dict[int, tuple[Vectors, Vectors]]:
    """Depth -> (torch's user vectors, the engine's), with the tallies brought up to date."""
    known = (times if times is not None else torch.zeros_like(items)) if model.uses_timestamps else None
    found = engines.run(items.numpy(), None if times is None else times.numpy())
    with torch.no_grad():
        expected = {depth: users[:, -1].numpy() for depth, users in model(items, known).items()}
    for depth, tally in tallies.items():
        error = float(np.abs(expected[depth] - found[depth]).max())
        if np.isnan(error):
            raise ParityError(f"depth {depth}: a user vector is not a number; the model has diverged, train it again")
        tally.max_abs_error = max(tally.max_abs_error, error)
        tally.histories += len(items)
    return {depth: (expected[depth], found[depth]) for depth in tallies}


def _compare_top(
    tally: DepthParity, expected: Vectors, found: Vectors, items: tuple[Vectors, Vectors], seen: Sequences
) -> None:
    """``items``: the model's vectors, and those that are stored."""
    exact, stored = items
    tally.users += len(expected)
    for start in range(0, len(expected), _ROWS_PER_RANKING):
        rows = np.arange(start, min(start + _ROWS_PER_RANKING, len(expected)))
        histories, scores = seen.select(rows), expected[rows] @ exact.T
        a, b = top_items(scores, histories), top_items(found[rows] @ stored.T, histories)
        apart = np.abs(np.take_along_axis(scores, a, axis=1) - np.take_along_axis(scores, b, axis=1))
        tally.agreed += int(np.count_nonzero((apart <= TIE).all(axis=1)))
        tally.identical += int(np.count_nonzero((a == b).all(axis=1)))


def top_items(scores: Vectors, seen: Sequences) -> NDArray[np.int64]:
    """The best TOP items of each row, best first, ties by the lowest index; seen items are left out."""
    scores = scores.copy()
    scores[seen.owners, seen.items] = -np.inf
    best = np.sort(np.argpartition(-scores, min(TOP, scores.shape[1] - 1), axis=1)[:, :TOP], axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def _of_each_length(histories: Sequences, lengths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A few real histories of exactly each length: the end of longer ones, repeated where all are short."""
    longest = np.argsort(-histories.lengths, kind="stable")[:_ROWS_PER_LENGTH]
    for length in lengths:
        items = np.stack([_newest(histories[row], length) for row in longest])
        times = None
        if histories.timestamps is not None:
            when = [histories.times(row) for row in longest]
            times = torch.from_numpy(np.stack([_newest(row, length) for row in when if row is not None]))
        yield torch.from_numpy(items.astype(np.int64) + 1), times


def _newest(values: NDArray[Any], length: int) -> NDArray[Any]:
    return np.resize(values, max(length, len(values)))[-length:]


def _evenly(histories: Sequences, most: int) -> Sequences:
    if len(histories) <= most:
        return histories
    return histories.select(np.linspace(0, len(histories) - 1, most).round().astype(np.int64))
