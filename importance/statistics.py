"""Intervals, ranks, agreement and consensus of layer scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95


def bootstrap_interval(rows: Floats, *, seed: int, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """The 95 % percentile bootstrap interval of the mean of each column of ``rows`` (samples, layers): low, high.

    Samples (users) are drawn with replacement, all columns together. Efron 1979.
    """
    random = np.random.default_rng(seed)
    count = len(rows)
    means = np.stack([rows[random.integers(count, size=count)].mean(0) for _ in range(resamples)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def order_by(scores: ArrayLike) -> list[int]:
    """Layer indices, the highest score first; equal scores by the lower index."""
    return [int(layer) for layer in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")]


def ranks_of(scores: ArrayLike) -> list[int]:
    """The rank of each layer, 1 = most important; equal scores by the lower index."""
    order = order_by(scores)
    ranks = [0] * len(order)
    for place, layer in enumerate(order):
        ranks[layer] = place + 1
    return ranks


def kendall_tau(left: ArrayLike, right: ArrayLike) -> float:
    """Kendall's tau-b of two score vectors, -1 to 1; 0 when one of them is constant, for it orders nothing.

    Kendall 1945, The treatment of ties in ranking problems.
    """
    above = np.triu_indices(len(np.asarray(left)), k=1)
    a, b = (np.sign(np.subtract.outer(np.asarray(v), np.asarray(v)))[above] for v in (left, right))
    untied = np.sqrt(np.sum(a != 0) * np.sum(b != 0))
    return float(np.sum(a * b) / untied) if untied else 0.0


def borda(rankings: Sequence[Sequence[int]]) -> list[float]:
    """The Borda score of each layer: 1 when every ranking puts it first, 0 when every ranking puts it last.

    It is (L - mean rank) / (L - 1), so its order is that of the mean rank.
    """
    ranks = np.asarray(rankings, dtype=np.float64)
    layers = ranks.shape[1]
    return [float(score) for score in (layers - ranks.mean(0)) / (layers - 1)]
