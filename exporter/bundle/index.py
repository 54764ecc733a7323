"""Makes a bundle whose items are searched by an index, measured beside the search that scores every item."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, ConfigError, DataError, ParityError
from fathom.exporter.bundle.derive import derive_bundle, open_source
from fathom.exporter.bundle.index_build import BATCH, build_index, default_lists, tune
from fathom.exporter.bundle.teachers import teaching_cases
from fathom.exporter.engines.reduced_quality import MAX_LOSS, relative_loss
from fathom.runtime import index_retriever
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.index_retriever import IndexRetriever
from fathom.runtime.item_filter import Bonus, Indices, ItemFilter
from fathom.runtime.manifest import CERTIFICATE_FILE, INDEX_FILE, IndexKind, Manifest, MetricInterval, RetrievalInfo
from fathom.runtime.retriever import FlatRetriever, Retriever
from fathom.training.batches import history_batches
from fathom.training.dataset import Dataset, Sequences
from fathom.training.metrics import interval
from fathom.training.splits import Cases, split

Floats = NDArray[np.float32]

#: The share of the flat search's top 10 that an index must find, where nothing else is said.
MIN_RECALL = 0.99
#: Items of an answer that are compared.
K = 10
#: User vectors that the effort is found with, and test users that it is judged by, at most.
TUNED, JUDGED = 500, 10_000
_TOKENS = 6_400
_DISCOUNTS = 1 / np.log2(np.arange(K) + 2)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class IndexLimits:
    """What an index must find, and what it may cost: shares of the flat search's top 10, and of its NDCG@10."""

    min_recall: float = MIN_RECALL
    max_loss: float = MAX_LOSS


class Indexed(NamedTuple):
    """A bundle that was made, seconds that building its index took, and milliseconds of one search by both ways."""

    manifest: Manifest
    built_s: float
    flat_ms: float
    index_ms: float


def index_bundle(
    source: Path,
    dataset: Dataset,
    out: Path,
    kind: IndexKind,
    *,
    limits: IndexLimits | None = None,
    lists: int | None = None,
    threads: int = 1,
    judged: int = JUDGED,
    progress: Progress = lambda _: None,
) -> Indexed:
    """Write to ``out`` the bundle with an index of its items, and without its certificate.

    ``lists``: of ivf and pq; None: a number that suits the items. ``threads``: that build the index; with more than one
    a graph is another one each time. ``judged``: test users that it is judged by, at most. Raises ConfigError for a
    catalogue that is too small for an index, ArtefactError for another data set than the bundle's, DataError without
    test cases, ParityError where a limit is not kept, MissingExtraError.
    """
    limits = limits or IndexLimits()
    with open_source(source, out) as bundle:
        vectors = bundle.vectors
        _check(bundle, dataset, lists)
        cut = split(dataset, bundle.manifest.source.split or "")
        if not len(cut.test):
            raise DataError("no user has enough events for a test case; there is nothing to judge the index by")
        lists = default_lists(kind, len(vectors)) if kind == "hnsw" or lists is None else lists
        begin_s = time.perf_counter()
        index = build_index(vectors, kind, lists=lists, threads=threads, progress=progress)
        built_s = time.perf_counter() - begin_s
        longest = bundle.manifest.model.max_history
        with open_engine(bundle, device="cpu") as engine:
            teaching, _ = teaching_cases(cut, longest, TUNED // len(engine.depths) + 1)
            users = _user_vectors(engine, teaching.histories, longest)
            progress(f"{kind}: how far it must look")
            built = tune(index, kind, lists, vectors, users[:TUNED], limits.min_recall)
            rows = np.linspace(0, len(cut.test) - 1, min(len(cut.test), judged)).astype(np.int64)
            flat = FlatRetriever(vectors)
            by_index = IndexRetriever(built.searched(), vectors, flat)
            recall, loss = _Judged(bundle, flat, by_index).measure(engine, cut.test.select(rows), progress)
        _check_limits(recall, loss, limits)
        info = RetrievalInfo(kind=kind, lists=lists, levels=built.levels, recall=recall, loss=loss)
        times = [_median_ms(retriever, users) for retriever in (flat, by_index)]
        new = {INDEX_FILE: built.to_bytes()}
        manifest = derive_bundle(bundle, out, new, drop=[CERTIFICATE_FILE], retrieval=info, fits={})
        return Indexed(manifest, built_s, *times)


def _check(bundle: Bundle, dataset: Dataset, lists: int | None) -> None:
    items, source = len(bundle.vectors), bundle.manifest.source
    if items <= index_retriever.FEW_ITEMS:
        raise ConfigError(
            f"{bundle.path}: {items:,} items are searched as fast without an index; it needs more than"
            f" {index_retriever.FEW_ITEMS:,}"
        )
    if lists is not None and not 1 <= lists <= items:
        raise ConfigError(f"--lists {lists}: at least 1, and at most the number of items, {items:,}")
    if dataset.sha256 != source.dataset:
        raise ArtefactError("the bundle was made from another data set; give the one it was made from")
    if source.split is None:
        raise ArtefactError(f"{bundle.path}: does not say how its data were split; export it again")


def _check_limits(recall: dict[int, MetricInterval], loss: dict[int, MetricInterval], limits: IndexLimits) -> None:
    for depth, found in sorted(recall.items()):
        if found.value < limits.min_recall:
            raise ParityError(
                f"at depth {depth} the index finds {found.value:.2%} of the best {K} items [{found.low:.2%},"
                f" {found.high:.2%}], less than {limits.min_recall:.2%}; choose another kind, or allow it with"
                " --min-recall"
            )
    for depth, lost in sorted(loss.items()):
        if lost.value > limits.max_loss:
            raise ParityError(
                f"at depth {depth} the index loses {lost.value:.2%} of NDCG@{K} [{lost.low:.2%}, {lost.high:.2%}], more"
                f" than {limits.max_loss:.2%}; choose another kind, or allow it with --max-loss"
            )


def _walks(engine: Engine, histories: Sequences, longest: int) -> Iterator[tuple[Indices, Iterator[Floats]]]:
    """Rows of a batch of histories, and their user vectors at each depth."""
    for rows, ids, times in history_batches(histories, max_history=longest, tokens=_TOKENS):
        seconds = None if times is None else times.numpy()
        yield np.asarray(rows), iter(engine.walk(ids.numpy(), seconds, engine.depths))


def _user_vectors(engine: Engine, histories: Sequences, longest: int) -> Floats:
    """Of all histories at all depths, (any, width), in a random order."""
    users = np.concatenate([each for _, walk in _walks(engine, histories, longest) for each in walk])
    return users[np.random.default_rng(0).permutation(len(users))]


class _Judged:
    """Answers of two searches to the same requests, as a server gives them: without seen items, with counting."""

    def __init__(self, bundle: Bundle, flat: Retriever, by_index: Retriever) -> None:
        self._counting, info = bundle.counting, bundle.manifest.counting
        self._weights = info.weights if info is not None else {}
        self._longest = bundle.manifest.model.max_history
        self._searches = flat, by_index

    def measure(
        self, engine: Engine, cases: Cases, progress: Progress
    ) -> tuple[dict[int, MetricInterval], dict[int, MetricInterval]]:
        """Depth -> recall, and depth -> the share of NDCG@10 that is lost."""
        depths, n = engine.depths, len(cases)
        recall, ndcg, done = np.zeros((len(depths), n)), np.zeros((2, len(depths), n)), 0
        for rows, walk in _walks(engine, cases.histories, self._longest):
            histories = [np.asarray(cases.histories[row], np.int64) for row in rows.tolist()]
            for place, (depth, users) in enumerate(zip(depths, walk, strict=True)):
                flat, found = self._answers(depth, users, histories)
                for row, best, other in zip(rows.tolist(), flat, found, strict=True):
                    recall[place, row] = np.isin(best, other).mean() if len(best) else 1.0
                    target = int(cases.targets[row])
                    ndcg[:, place, row] = _ndcg(best, target), _ndcg(other, target)
            done += len(rows)
            progress(f"{done:,} of {n:,} test users by both searches")
        means = [interval(each) for each in recall]
        found_share = {depth: MetricInterval(**each.as_dict()) for depth, each in zip(depths, means, strict=True)}
        lost = {depth: relative_loss(*ndcg[:, place]) for place, depth in enumerate(depths)}
        return found_share, lost

    def _answers(self, depth: int, users: Floats, histories: Sequence[Indices]) -> list[list[Indices]]:
        filters = [ItemFilter(exclude=history) for history in histories]
        bonuses = [self._bonus(depth, history) for history in histories]
        found: list[list[Indices]] = [[], []]
        for low in range(0, len(users), BATCH):
            part = slice(low, low + BATCH)
            asked = users[part], [K] * len(users[part]), filters[part], bonuses[part]
            for answers, retriever in zip(found, self._searches, strict=True):
                answers += [items for items, _ in retriever.search(*asked)]
        return found

    def _bonus(self, depth: int, history: Indices) -> Bonus | None:
        weight = np.float32(self._weights.get(depth, 0.0))
        if self._counting is None or not weight:
            return None
        items, shares = self._counting.shares(history[-self._longest :])
        return items, weight * shares


def _ndcg(best: Indices, target: int) -> float:
    place = np.flatnonzero(best == target)
    return float(_DISCOUNTS[place[0]]) if place.size else 0.0


def _median_ms(retriever: Retriever, users: Floats, rounds: int = 50) -> float:
    """Of one search for the best ten by itself."""
    taken = []
    for row in range(min(rounds, len(users))):
        begin_s = time.perf_counter()
        retriever.search(users[row : row + 1], [K], [ItemFilter()])
        taken.append(time.perf_counter() - begin_s)
    return float(np.median(taken)) * 1e3
