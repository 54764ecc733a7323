"""Rank-based metrics of one right answer per user, and their bootstrap intervals over users."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2_000
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def ranks(scores: NDArray[np.float32], targets: NDArray[np.integer[Any]]) -> Floats:
    """The place of each row's target among all items, from 1; infinity where its score is -inf (left out).

    scores: (b, n_items); targets: (b,) item indices. Equal scores are ordered by item index, lowest first,
    as the server's retriever orders them, so that the offline figure is about the list that is served.
    """
    rows = np.arange(len(targets))
    own = scores[rows, targets][:, None]
    before = np.arange(scores.shape[1]) < np.asarray(targets)[:, None]
    places = 1.0 + np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)
    return np.where(np.isneginf(own[:, 0]), np.inf, places)


def hr(places: Floats, k: int) -> Floats:
    """Hit rate at k per user: 1 where the target is among the first k. float64 (users,)."""
    return (places <= k).astype(np.float64)


def ndcg(places: Floats, k: int) -> Floats:
    """NDCG at k per user for one relevant item: 1 / log2(1 + rank) within the first k. float64 (users,)."""
    return np.where(places <= k, 1.0 / np.log2(1.0 + places), 0.0)


def mrr(places: Floats) -> Floats:
    """Reciprocal rank per user, over the whole list. float64 (users,)."""
    return 1.0 / places


def per_user(places: Floats, cutoffs: tuple[int, ...]) -> dict[str, Floats]:
    """All metrics by name, float64 (users,) each: hr@k, ndcg@k for each cutoff, mrr."""
    found = {f"hr@{k}": hr(places, k) for k in cutoffs}
    found |= {f"ndcg@{k}": ndcg(places, k) for k in cutoffs}
    return {**found, "mrr": mrr(places)}


def top_items(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k best items of each row (b, k), in no particular order; fewer are marked -1 where items were left out."""
    k = min(k, scores.shape[1])
    best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    return np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), -1, best)


def bootstrap_means(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means over resampled users, the same users for every column: (users, m) -> (resamples, m)."""
    rng = np.random.default_rng(seed)
    users = len(values)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(users, size=(rows, users)) + np.arange(rows)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        means[start : start + rows] = counts.astype(np.float64) @ values / users
    return means


def percentile(value: float, means: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of bootstrap means (resamples,) around the value measured on all users."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(float(value), float(low), float(high))


def interval(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of a metric (users,) with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993)."""
    means = bootstrap_means(values[:, None], resamples=resamples, seed=seed)
    return percentile(float(values.mean()), means[:, 0])


def paired_difference(values: Floats, reference: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of ``values - reference``, both (users,), with its 95 % interval."""
    return interval(values - reference, resamples=resamples, seed=seed)


def intervals(
    columns: Mapping[str, Floats], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, Interval], Floats]:
    """Intervals of many per-user metrics, and the bootstrap means (resamples, m) that they come from.

    All columns share the resampled users, so differences between columns of the means are paired.
    """
    values = np.stack(list(columns.values()), axis=1)
    means = bootstrap_means(values, resamples=resamples, seed=seed)
    found = {name: percentile(float(values[:, index].mean()), means[:, index]) for index, name in enumerate(columns)}
    return found, means
