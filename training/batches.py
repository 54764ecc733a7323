"""Training batches: long users are cut into windows, windows of similar length share a batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.training.dataset import Sequences


@dataclass(frozen=True)
class Batch:
    """B windows padded on the left to L positions.

    ``items`` int64 (B, L): input ids, 0 is padding. ``ahead`` int64 (B, L, K): the next K items as indices, -1
    where there is none. ``timestamps`` int64 seconds (B, L) or None. ``users`` int64 (B,): rows of the training
    sequences. ``weights`` float32 (B, L, K): what each of the next items counts as a target, or None: all the same.
    """

    items: Tensor
    ahead: Tensor
    timestamps: Tensor | None
    users: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        times = None if self.timestamps is None else self.timestamps.to(device)
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(self.items.to(device), self.ahead.to(device), times, self.users.to(device), weights)


def cut_windows(lengths: NDArray[np.int64], window: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cut sequences into windows of at most ``window`` inputs; rows are (sequence, start, stop).

    The cuts of a long sequence move from epoch to epoch, so that every event is seen with different context.
    The last event of a sequence has no next item and is never an input.
    """
    rows = []
    for user, length in enumerate(lengths - 1):
        if length < 1:
            continue
        first = length if length <= window else int(rng.integers(1, window + 1))
        stops = [*range(first, int(length), window), int(length)]
        rows += [(user, start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def epoch_batches(train: Sequences, *, window: int, tokens: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """One epoch as window rows (B, 3) per batch: at most ``tokens`` padded positions each, shuffled."""
    rows = cut_windows(train.lengths, window, rng)
    rows = rows[rng.permutation(len(rows))]
    # Nearly sorted by length: little padding, yet other neighbours every epoch.
    size = rows[:, 2] - rows[:, 1]
    rows = rows[np.argsort(size + rng.uniform(0, 0.1 * window, len(rows)), kind="stable")]
    size = rows[:, 2] - rows[:, 1]
    batches = []
    start = 0
    while start < len(rows):
        stop, longest = start, 0
        while stop < len(rows) and (stop - start + 1) * max(longest, size[stop]) <= max(tokens, window):
            longest = max(longest, int(size[stop]))
            stop += 1
        batches.append(rows[start:stop])
        start = stop
    return [batches[i] for i in rng.permutation(len(batches))]


def make_batch(train: Sequences, rows: NDArray[np.int64], ahead: int) -> Batch:
    """The Batch of some window rows (B, 3)."""
    longest = int((rows[:, 2] - rows[:, 1]).max())
    items = np.zeros((len(rows), longest), dtype=np.int64)
    future = np.full((len(rows), longest + ahead - 1), -1, dtype=np.int64)
    times = None if train.timestamps is None else np.zeros_like(items)
    weights = None if train.weights is None else np.zeros(future.shape, dtype=np.float32)
    for row, (user, start, stop) in enumerate(rows):
        sequence = train[user]
        pad = longest - (stop - start)
        items[row, pad:] = sequence[start:stop] + 1
        following = sequence[start + 1 : stop + ahead]
        future[row, pad : pad + len(following)] = following
        if weights is not None and train.weights is not None:
            first = train.offsets[user] + start + 1
            weights[row, pad : pad + len(following)] = train.weights[first : first + len(following)]
        when = train.times(user)
        if times is not None and when is not None:
            times[row, pad:] = when[start:stop]
    return Batch(
        items=torch.from_numpy(items),
        ahead=torch.from_numpy(future).unfold(1, ahead, 1),
        timestamps=None if times is None else torch.from_numpy(times),
        users=torch.from_numpy(rows[:, 0].copy()),
        weights=None if weights is None else torch.from_numpy(weights).unfold(1, ahead, 1),
    )


def history_batches(
    histories: Sequences, *, max_history: int, tokens: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor | None]]:
    """Histories as left-padded input ids (B, L), similar lengths together, cut to their newest ``max_history``.

    Yields (rows of ``histories``, items, timestamps or None); at most ``tokens`` padded positions each.
    """
    size = np.minimum(histories.lengths, max_history)
    order = np.argsort(size, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * size[order[stop]] <= tokens:
            stop += 1
        rows = order[start:stop]
        yield rows, *pad_histories(histories, rows, max_history)
        start = stop


def pad_histories(histories: Sequences, rows: NDArray[np.int64], max_history: int) -> tuple[Tensor, Tensor | None]:
    """Left-padded input ids (B, L) and timestamps (B, L) or None of some histories, newest item last."""
    longest = max(1, int(np.minimum(histories.lengths[rows], max_history).max()))
    items = np.zeros((len(rows), longest), dtype=np.int64)
    times = None if histories.timestamps is None else np.zeros_like(items)
    for row, index in enumerate(rows):
        newest = histories[index][-longest:]
        items[row, longest - len(newest) :] = newest + 1
        when = histories.times(index)
        if times is not None and when is not None:
            times[row, longest - len(newest) :] = when[-longest:]
    return torch.from_numpy(items), None if times is None else torch.from_numpy(times)
