"""Counting baselines: what a trained model has to beat.

Each takes training sequences and returns a scorer, as `fathom.training.evaluate` wants it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fathom.errors import DataError
from fathom.training.dataset import Sequences

Scores = NDArray[np.float32]
Scorer = Callable[[Sequences], Scores]  # histories -> (histories, n_items)

MAX_LAG = 10
LAST_ITEMS = 10
TRANSITION_DECAY = 0.7
POPULARITY_POWER = -0.5
EASE_REGULARISATION = 100.0
EASE_DECAY = 0.97
EASE_MAX_ITEMS = 15_000


def popularity(train: Sequences, n_items: int) -> Scorer:
    """Every user gets the items with the most training events."""
    counts = np.bincount(train.items, minlength=n_items).astype(np.float32)
    return lambda histories: np.tile(counts, (len(histories), 1))


def transitions(train: Sequences, n_items: int) -> Scorer:
    """Item-to-item transitions: T[a, b] gains 1/lag whenever b follows a at lag 1 to 10.

    Score of b = sum over the last 10 items a of T[a, b] * 0.7^age, times popularity(b)^-0.5.
    """
    counts = sparse.csr_array((n_items, n_items), dtype=np.float32)
    owners = train.owners
    for lag in range(1, MAX_LAG + 1):
        same = owners[lag:] == owners[:-lag]
        pairs = (train.items[:-lag][same], train.items[lag:][same])
        gain = np.full(len(pairs[0]), 1.0 / lag, dtype=np.float32)
        counts += sparse.csr_array((gain, pairs), shape=(n_items, n_items))
    popular = np.bincount(train.items, minlength=n_items)
    weight = np.maximum(popular, 1).astype(np.float32) ** POPULARITY_POWER

    def score(histories: Sequences) -> Scores:
        recent = recency(histories, n_items, TRANSITION_DECAY, last=LAST_ITEMS)
        return np.asarray((recent @ counts).toarray() * weight, dtype=np.float32)

    return score


def ease(
    train: Sequences, n_items: int, *, regularisation: float = EASE_REGULARISATION, decay: float = EASE_DECAY
) -> Scorer:
    """EASE (Steck 2019, arXiv 1905.03375) learned on who met what, asked with weights decay^age.

    While fitting it holds two dense float64 (n_items, n_items) matrices: 3.6 GB, and minutes, at the most items
    it takes, 15,000. Raises DataError for more.
    """
    weights = ease_weights(train, n_items, regularisation)

    def score(histories: Sequences) -> Scores:
        return np.asarray(recency(histories, n_items, decay) @ weights, dtype=np.float32)

    return score


def ease_weights(train: Sequences, n_items: int, regularisation: float) -> Scores:
    """EASE's weights float32 (n_items, n_items): what an item in the history (row) adds to each other (column).

    Raises DataError for more than 15,000 items.
    """
    if n_items > EASE_MAX_ITEMS:
        raise DataError(f"EASE takes at most {EASE_MAX_ITEMS:,} items, not {n_items:,}; leave it out")
    met = sparse.csr_array((np.ones(len(train.items)), (train.owners, train.items)), shape=(len(train), n_items))
    met.data[:] = 1.0  # a repeated item counts once
    gram = np.asarray((met.T @ met).toarray())
    gram[np.diag_indices(n_items)] += regularisation
    inverse = np.linalg.inv(gram)
    weights: Scores = (-inverse / np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return weights


BASELINES: dict[str, Callable[[Sequences, int], Scorer]] = {
    "popularity": popularity,
    "EASE": ease,
    "transitions": transitions,
}


def recency(
    histories: Sequences, n_items: int, decay: float, last: int | None = None, dtype: type[np.floating] = np.float32
) -> "sparse.csr_array[Any, Any]":
    """decay^age for each of a history's (last) items, age 0 being the newest: sparse (n, n_items)."""
    owners = histories.owners
    ages = histories.offsets[1:][owners] - 1 - np.arange(len(owners))
    used = ages < (len(owners) if last is None else last)
    values = (decay ** ages[used]).astype(dtype)
    places = (owners[used], histories.items[used])
    return sparse.csr_array((values, places), shape=(len(histories), n_items))
