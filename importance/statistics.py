"""Intervals, ranks, agreement, consensus, tiers and stability of layer scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
#: The exact Kemeny order looks at every subset of the layers: a million of them here.
MOST_KEMENY_LAYERS = 20
#: The tiers of layers by their place in the consensus: the first quarter of the places, what follows, the last quarter.
TIERS = ("critical", "middle", "redundant")

_DRAWN_AT_ONCE = 2**22


def resampled_means(rows: Floats, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """The mean of each column of ``rows`` (samples, layers) in resamples of the samples: (resamples, layers).

    Samples (users or folds) are drawn with replacement, all columns together. The draw depends on the seed and the
    number of samples alone, so that methods with one row per user are drawn with the same users. Efron 1979.
    """
    count = len(rows)
    random = np.random.default_rng([seed, count])
    at_once = max(1, _DRAWN_AT_ONCE // count)
    means = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means.append(times.astype(np.float64) @ rows / count)
    return np.concatenate(means)


def bootstrap_interval(rows: Floats, *, seed: int, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """The 95 % percentile bootstrap interval of the mean of each column of ``rows`` (samples, layers): low, high."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled_means(rows, seed=seed, resamples=resamples), [tail, 1 - tail], axis=0)
    return low, high


def order_by(scores: ArrayLike) -> list[int]:
    """Layer indices, the highest of the scores (layers,) first; equal scores by the lower index."""
    return [int(layer) for layer in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")]


def ranks_of(scores: ArrayLike) -> list[int]:
    """The rank of each layer by scores (layers,), 1 = most important; equal scores by the lower index."""
    return [int(rank) for rank in ranks_by_row(np.asarray(scores, dtype=np.float64))]


def ranks_by_row(scores: Floats) -> Ranks:
    """``ranks_of`` each row of scores (..., layers)."""
    return np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1) + 1


def kendall_tau(left: ArrayLike, right: ArrayLike) -> float:
    """Kendall's tau-b of two score vectors (layers,), -1 to 1; 0 when one is constant, for it orders nothing.

    Kendall 1945, The treatment of ties in ranking problems.
    """
    return float(kendall_taus(np.asarray(left), np.asarray(right)))


def kendall_taus(left: NDArray[np.generic], right: NDArray[np.generic]) -> Floats:
    """``kendall_tau`` of each row of ``left`` with that of ``right``, both (..., layers)."""
    i, j = np.triu_indices(left.shape[-1], k=1)
    a, b = (np.sign(values[..., i] - values[..., j]) for values in (left.astype(float), right.astype(float)))
    untied = np.sqrt(np.sum(a != 0, axis=-1) * np.sum(b != 0, axis=-1))
    taus: Floats = np.sum(a * b, axis=-1) / np.maximum(untied, 1)
    return taus


def borda(rankings: Sequence[Sequence[int]]) -> list[float]:
    """The Borda score of each layer: 1 when every ranking puts it first, 0 when every ranking puts it last.

    It is (L - mean rank) / (L - 1), so its order is that of the mean rank.
    """
    return [float(score) for score in _borda(np.asarray(rankings))]


def resampled_borda(means: Sequence[Floats]) -> Floats:
    """The Borda scores in each resample, (resamples, layers), from ``resampled_means`` of each method."""
    return _borda(np.stack([ranks_by_row(each) for each in means]))


def _borda(ranks: Ranks) -> Floats:
    """Of ranks (methods, ..., layers)."""
    layers = ranks.shape[-1]
    scores: Floats = (layers - ranks.mean(0)) / (layers - 1)
    return scores


def disagreements(order: Sequence[int], rankings: Sequence[Sequence[int]]) -> int:
    """How many pairs of layers the rankings order otherwise than ``order`` does, summed over the rankings.

    For each ranking it is the Kendall distance, 0 to L (L - 1) / 2.
    """
    ranks = np.asarray(rankings)[:, list(order)]
    i, j = np.triu_indices(len(order), k=1)
    return int((ranks[:, i] > ranks[:, j]).sum())


def kemeny(rankings: Sequence[Sequence[int]]) -> list[int] | None:
    """The order of the layers that disagrees least with the rankings (see ``disagreements``): the Kemeny consensus.

    Exact, by dynamic programming over all subsets of layers; of equally good orders the one that has lower indices
    earlier. None for more than ``MOST_KEMENY_LAYERS`` layers. Kemeny 1959, Mathematics without numbers.
    """
    ranks = np.asarray(rankings)
    layers = ranks.shape[1]
    if layers > MOST_KEMENY_LAYERS:
        return None
    # against[a, b]: how many rankings put b before a.
    against = (ranks[:, :, None] > ranks[:, None, :]).sum(0)
    # before[a][subset]: the disagreements that putting a before all layers of the subset brings.
    before = np.zeros((layers, 1), dtype=np.int32)
    for layer in range(layers):
        before = np.concatenate([before, before + against[:, layer, None].astype(np.int32)], axis=1)
    subsets = np.arange(2**layers)
    size = np.bitwise_count(subsets)
    # least[subset]: the fewest disagreements within the subset, over all orders of its layers.
    least = np.zeros(2**layers, dtype=np.int32)
    for count in range(2, layers + 1):
        these = subsets[size == count]
        best = np.full(len(these), np.iinfo(np.int32).max, dtype=np.int32)
        for layer in range(layers):
            rest = these & ~(1 << layer)
            total = np.where(rest != these, before[layer, rest] + least[rest], best)
            np.minimum(best, total, out=best)
        least[these] = best
    order, left = [], 2**layers - 1
    while left:
        rests = [(layer, left & ~(1 << layer)) for layer in range(layers) if left >> layer & 1]
        first, left = next((a, rest) for a, rest in rests if before[a, rest] + least[rest] == least[left])
        order.append(first)
    return order


def quarter(layers: int) -> int:
    """How many places a quarter of so many layers is, to the nearest whole number and 1 at least."""
    return max(1, (layers + 2) // 4)


def tier_of(place: int, layers: int) -> str:
    """The tier of a place in the consensus, 1 to ``layers``: one of ``TIERS``."""
    if place <= quarter(layers):
        return TIERS[0]
    return TIERS[2] if place > layers - quarter(layers) else TIERS[1]


def tier_probabilities(consensus: Floats) -> dict[str, tuple[float, ...]]:
    """How sure the tier of each layer is: tier -> probability of each layer; those of a layer sum to 1.

    The probability is the share of the resamples in which the consensus, of scores (resamples, layers) as
    ``resampled_borda`` gives them, puts the layer there.
    """
    ranks, top = ranks_by_row(consensus), quarter(consensus.shape[1])
    critical, redundant = ranks <= top, ranks > consensus.shape[1] - top
    shares = (critical.mean(0), (~critical & ~redundant).mean(0), redundant.mean(0))
    return {tier: tuple(share.tolist()) for tier, share in zip(TIERS, shares, strict=True)}


def stability(resampled: Floats, scores: ArrayLike) -> float:
    """The mean Kendall's tau between the scores of all samples (layers,) and those of each resample, -1 to 1."""
    return float(kendall_taus(resampled, np.asarray(scores)).mean())
