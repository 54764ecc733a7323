"""A heuristic that is not trained: neighbours of the newest items in the graph of transitions, ranked by their titles.

TGH of arXiv 2605.07125, written from the paper and the description of its code: an edge goes from an item to each that
ever followed it at once. The ring h of an item is what is h edges away, no fewer. Of each ring a number of items is
taken, the most similar titles first; in the first ring log(1 + count of the edge), relative to the item's largest, is
added with weight 0.5. What one ring lacks the next one may take, and what is still missing is filled up with the most
popular items, not at random. Seen items are no candidates here, as everywhere in Fathom. Titles are encoded by
all-MiniLM-L6-v2 (the paper: T5-XL).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fathom.training.baselines import Scorer, Scores
from fathom.training.dataset import Sequences

EDGE_WEIGHT = 0.5
#: Variant -> for the newest item, and the one before it: how many items are taken of each ring.
VARIANTS = {"TGH-1": ((7, 2, 1),), "TGH-2": ((5, 1), (3, 1))}

Items = NDArray[np.int64]


def transition_graph(train: Sequences, n_items: int, titles: Scores, budgets: tuple[tuple[int, ...], ...]) -> Scorer:
    """TGH as a scorer: the list's items from its length down to 1, below them popularity less 1.

    titles: float32 (n_items, d), unit rows. budgets: as in ``VARIANTS``.
    """
    graph, bonus = _graph(train, n_items)
    popularity = np.bincount(train.items, minlength=n_items) / max(1, len(train.items)) - 1

    def score(histories: Sequences) -> Scores:
        found = np.tile(popularity.astype(np.float32), (len(histories), 1))
        for row, (start, end) in enumerate(zip(histories.offsets[:-1], histories.offsets[1:], strict=True)):
            chosen = _chosen(graph, bonus, titles, histories.items[start:end].astype(np.int64), budgets)
            found[row, chosen] = np.arange(len(chosen), 0, -1)
        return found

    return score


def _graph(train: Sequences, n_items: int) -> tuple[Any, Any]:
    """The edges, and what each adds to the score of the item that it leads to: two csr arrays (n, n) of one pattern."""
    owners = train.owners
    edges = (owners[1:] == owners[:-1]) & (train.items[1:] != train.items[:-1])
    places = (train.items[:-1][edges], train.items[1:][edges])
    graph = sparse.csr_array((np.ones(len(places[0])), places), shape=(n_items, n_items))
    graph.sort_indices()
    bonus = graph.copy()
    bonus.data = np.log1p(bonus.data)
    largest = bonus.max(axis=1).toarray().ravel()
    bonus.data *= EDGE_WEIGHT / np.repeat(largest, np.diff(bonus.indptr))
    return graph, bonus


def _chosen(graph: Any, bonus: Any, titles: Scores, history: Items, budgets: tuple[tuple[int, ...], ...]) -> list[int]:
    """The list for one history, best first."""
    hidden = np.zeros(graph.shape[0], dtype=np.bool_)
    hidden[history] = True
    chosen: list[int] = []
    for item, budget in zip(history[::-1], budgets, strict=False):
        found = _rings(graph, bonus, titles, int(item), hidden, budget)
        hidden[found] = True
        chosen += found
    return chosen


def _rings(
    graph: Any, bonus: Any, titles: Scores, item: int, hidden: NDArray[np.bool_], budget: tuple[int, ...]
) -> list[int]:
    """What is taken around one item: of each ring its budget and what earlier rings lacked, then what was left over."""
    visited = np.zeros(graph.shape[0], dtype=np.bool_)
    visited[item] = True
    taken: list[int] = []
    left: list[int] = []
    ring, wanted = np.array([item]), 0
    for hop, size in enumerate(budget):
        reached = np.zeros_like(visited)
        for source in ring:
            reached[graph.indices[graph.indptr[source] : graph.indptr[source + 1]]] = True
        ring = np.flatnonzero(reached & ~visited)
        visited[ring] = True
        similar = titles[ring] @ titles[item]
        if not hop:
            similar = similar + bonus[[item], :].toarray().ravel()[ring]
        ordered = ring[np.argsort(-similar, kind="stable")]
        candidates = [*left, *ordered[~hidden[ordered]].tolist()]
        wanted += size
        take = wanted - len(taken)
        taken, left = taken + candidates[:take], candidates[take:]
    return taken
