"""What a bundle answers to requests at every depth, how good and how like the deepest answer that is, and its cost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.bundle.teachers import case_digests
from fathom.runtime.bundle import Bundle
from fathom.runtime.context import Rows
from fathom.runtime.counting import Counting
from fathom.runtime.engines.interface import Engine
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Scores
from fathom.runtime.padding import left_padded, length_buckets
from fathom.selector.certificate import TOP as K
from fathom.selector.features import Features
from fathom.selector.schema import Floats
from fathom.training.request_time import gaps_of
from fathom.training.splits import Cases

#: Input ids (rows, length) and timestamps of the same shape, for an engine.
Items = tuple[NDArray[np.int64], NDArray[np.int64] | None]
#: Item indices, oldest first.
History = NDArray[np.integer]
#: Items, best first, and their scores.
Found = tuple[Indices, Scores]
#: Requests x padded length of one batch.
BATCH_TOKENS = 4096
ROUNDS = 15
_DISCOUNTS = 1 / np.log2(np.arange(K) + 2)


@dataclass(frozen=True)
class Outcomes:
    """One row per request. ``depths``: those of the bundle, ascending, D of them; 0 first where it counts.

    users int (n,): whose request. lengths int (n,): items that the engine sees. features (n, features): as
    ``selector.features``. complexity (n,). quality (n, D): NDCG@10, NaN without a target. best int (n, D, 10): the
    items given, -1 where there are fewer. scores (n, D, 10): theirs, NaN where there are fewer. digests V32 (n,): see
    ``case_digests``. denoised (n, D): see ``_expected_ndcg``; None where the bundle does not say by what temperature
    scores are divided.
    """

    depths: tuple[int, ...]
    users: NDArray[np.int64]
    lengths: NDArray[np.int64]
    features: Floats
    complexity: Floats
    quality: Floats
    best: NDArray[np.int64]
    scores: Floats
    digests: NDArray[np.void]
    denoised: Floats | None = None

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def agreement(self) -> Floats:
        """The share of the top 10 at the deepest depth that each depth gives too, (n, D)."""
        return self.agreement_at(K)

    def agreement_at(self, k: int) -> Floats:
        """The same of the top k, k <= 10: all that a request for k items shows."""
        return agreement(self.best[:, :, :k])

    @property
    def overlap(self) -> Floats:
        """Rank-biased overlap of each depth's list with the deepest's, (n, D): see ``rank_biased_overlap``."""
        return rank_biased_overlap(self.best)

    @property
    def network_depths(self) -> tuple[int, ...]:
        """All but depth 0."""
        return tuple(filter(None, self.depths))

    def select(self, rows: NDArray[Any]) -> Self:
        """Some rows, by index (m,) or mask (n,)."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        chosen: dict[str, Any] = {name: None if part is None else part[rows] for name, part in parts.items()}
        return replace(self, **chosen)

    def at_depths(self, depths: tuple[int, ...]) -> Self:
        """The columns of some depths, the deepest of all among them where ``denoised`` is to mean the same."""
        columns = [self.depths.index(depth) for depth in depths]
        by_depth = {name: getattr(self, name)[:, columns] for name in ("quality", "best", "scores")}
        denoised = None if self.denoised is None else self.denoised[:, columns]
        return replace(self, depths=depths, **by_depth, denoised=denoised)


def agreement(best: NDArray[np.int64]) -> Floats:
    """The share of the deepest list that each depth gives too, (n, D), from lists (n, D, k), -1 where items lack."""
    deepest = best[:, -1]
    given = (best[:, :, :, None] == deepest[:, None, None, :]) & (deepest >= 0)[:, None, None, :]
    share: Floats = given.any(2).sum(-1) / np.maximum((deepest >= 0).sum(-1), 1)[:, None]
    return share


def rank_biased_overlap(best: NDArray[np.int64], persistence: float = 0.9) -> Floats:
    """How alike each depth's list is to the deepest, the top counting most: 0 to 1, (n, D), from lists (n, D, k).

    The extrapolated rank-biased overlap of finite lists (Webber, Moffat and Zobel 2010): the first d items of both
    agree by a share A(d), which counts (1 - p) p^(d - 1); the last of them stands for all that would follow. -1 where
    items lack, at the end.
    """
    k = best.shape[-1]
    places = np.arange(1, k + 1)
    same = (best[:, :, :, None] == best[:, -1:, None, :]) & (best >= 0)[..., None]
    found = same.cumsum(2).cumsum(3).diagonal(axis1=2, axis2=3)
    shares = found / np.minimum(places, np.maximum((best[:, -1] >= 0).sum(-1), 1)[:, None])[:, None]
    overlap: Floats = (1 - persistence) * shares @ persistence ** (places - 1) + persistence**k * shares[..., -1]
    return overlap


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a request alone in its batch, (m, D), interpolated between ``lengths`` (m,) of its history."""

    depths: tuple[int, ...]
    lengths: NDArray[np.int64]
    ms: Floats

    def of(self, lengths: NDArray[np.int64]) -> Floats:
        """Milliseconds (n, D) of requests of these lengths (n,)."""
        return np.column_stack([np.interp(lengths, self.lengths, column) for column in self.ms.T])

    def at_depths(self, depths: tuple[int, ...]) -> "Costs":
        """The columns of some depths."""
        columns = [self.depths.index(depth) for depth in depths]
        return Costs(depths, self.lengths, self.ms[:, columns])


class Told(NamedTuple):
    """What n requests tell beside their histories.

    ``gaps``: seconds from the newest event to the request, UNKNOWN or (n,). ``contexts``: as ``Context.rows``.
    """

    gaps: NDArray[np.int64]
    contexts: list[Rows]

    def of(self, rows: NDArray[np.intp]) -> "Told":
        """That of some requests, by index (m,)."""
        return Told(self.gaps[rows], [self.contexts[row] for row in rows.tolist()])


def _told(bundle: Bundle, cases: Cases) -> Told:
    asked, known = cases.histories.asked_contexts, bundle.context
    contexts: list[Rows] = [()] * len(cases)
    if asked is not None and known is not None:
        names = {name: ("", *values) for name, values in asked.values.items()}
        for row, codes in enumerate(asked.codes.tolist()):
            contexts[row] = known.rows({name: names[name][code] for name, code in zip(names, codes, strict=True)})
    return Told(gaps_of(cases.histories), contexts)


class _Answers:
    """The best items of requests, as a server finds them: counting beside the network, or alone at depth 0."""

    def __init__(self, bundle: Bundle, engine: Engine, counting: Counting | None) -> None:
        info = bundle.manifest.counting
        self._retriever, self._engine, self._counting = open_retriever(bundle), engine, counting
        self._vectors = np.asarray(bundle.vectors)
        self._request_time, self._context = bundle.request_time, bundle.context
        self._weights = {} if counting is None or info is None else info.weights
        self.depths = engine.depths if counting is None else (0, *engine.depths)

    def at(self, depth: int, histories: Sequence[History], items: Items, filters: Sequence[ItemFilter]) -> list[Found]:
        """At one depth, times and contexts unknown. ``items``: the histories as the engine takes them."""
        if not depth:
            return self._counted(histories, filters)
        return self._found(depth, self._engine.run(*items, depth), filters, self._shares((depth,), histories))

    def walk(
        self, histories: Sequence[History], items: Items, told: Told, filters: Sequence[ItemFilter]
    ) -> Iterator[tuple[NDArray[np.float32], list[Found]]]:
        """At every depth that the engine has, going on from the one before: user vectors, and what they find."""
        shares = self._shares(self._engine.depths, histories)
        for depth, computed in zip(self._engine.depths, self._engine.walk(*items, self._engine.depths), strict=True):
            users = computed
            if self._request_time is not None:
                users = self._request_time.moved(users, told.gaps)
            if self._context is not None:
                users = self._context.moved(users, told.contexts)
            yield users, self._found(depth, users, filters, shares)

    def everywhere(
        self,
        histories: Sequence[History],
        items: Items,
        told: Told,
        filters: Sequence[ItemFilter],
        temperature: float | None,
    ) -> tuple[list[list[Found]], Floats | None]:
        """At each of ``depths``, and what each answer is expected to be worth, (n, D): see ``_expected_ndcg``."""
        found = [] if self._counting is None else [self._counted(histories, filters)]
        users = np.empty(0, np.float32)
        for users, best in self.walk(histories, items, told, filters):  # noqa: B007 - the deepest are needed below
            found.append(best)
        if temperature is None:
            return found, None
        deepest, worth = self.depths[-1], []
        bonuses = self._bonuses(deepest, self._shares((deepest,), histories)) or [NO_BONUS] * len(filters)
        for row, answers in enumerate(zip(*found, strict=True)):
            logits = self._scores(users[row], filters[row], bonuses[row]) / np.float32(temperature)
            worth.append(_expected_ndcg(logits, [best for best, _ in answers]))
        return found, np.array(worth)

    def _scores(self, user: NDArray[np.float32], keep: ItemFilter, bonus: Bonus) -> Scores:
        """Of all items for one user vector (width,), (items,); minus infinity for what is left out."""
        scores: Scores = self._vectors @ user
        scores[bonus[0]] += bonus[1]
        scores[keep.exclude] = -np.inf
        return scores

    def _counted(self, histories: Sequence[History], filters: Sequence[ItemFilter]) -> list[Found]:
        assert self._counting is not None
        return [self._counting.best(history, K, keep) for history, keep in zip(histories, filters, strict=True)]

    def _shares(self, depths: Sequence[int], histories: Sequence[History]) -> list[Bonus]:
        if self._counting is None or not any(self._weights[depth] for depth in depths):
            return []
        return [self._counting.shares(history) for history in histories]

    def _bonuses(self, depth: int, shares: Sequence[Bonus]) -> list[Bonus] | None:
        weight = np.float32(self._weights.get(depth, 0.0))
        return [(items, weight * values) for items, values in shares] if weight else None

    def _found(
        self, depth: int, users: NDArray[np.float32], filters: Sequence[ItemFilter], shares: Sequence[Bonus]
    ) -> list[Found]:
        return self._retriever.search(users, [K] * len(users), filters, self._bonuses(depth, shares))


def _expected_ndcg(logits: Scores, lists: Sequence[Indices]) -> list[float]:
    """NDCG@10 of each list (<= 10,) that is expected where the next item is drawn from the softmax of these (items,).

    It is what one held-out item would give on average if the deepest depth were right about all of them: a loss
    without the noise of that item, for who knows how far to trust it.
    """
    most = logits.max()
    if most == -np.inf:
        return [0.0] * len(lists)
    total = np.exp(logits - most).sum()
    return [float(np.exp(logits[best] - most) @ _DISCOUNTS[: len(best)] / total) for best in lists]


def measure_outcomes(
    bundle: Bundle,
    engine: Engine,
    cases: Cases,
    *,
    counting: Counting | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcomes:
    """Ask every case of every depth, at its time and context if known, by the engine and search that a server uses.

    ``counting``: what takes the place of the bundle's counting exit, where it has one; it must not have counted the
    targets of the cases.
    """
    answers = _Answers(bundle, engine, bundle.counting and (counting or bundle.counting))
    longest = bundle.manifest.model.max_history
    uses_timestamps = bundle.manifest.model.uses_timestamps
    lengths = np.minimum(cases.histories.lengths, longest)
    depths, count, temperature = answers.depths, len(cases), bundle.complexity.temperature
    quality, given = np.zeros((count, len(depths))), np.full((count, len(depths), K), -1)
    scores, denoised = np.full(given.shape, np.nan), np.zeros(quality.shape)
    features = np.empty((count, len(Features._fields)))
    complexity = np.empty(count)
    for row in range(count):
        history, times = cases.histories[row][-longest:], cases.histories.times(row)
        features[row], complexity[row] = bundle.inspect(history, None if times is None else times[-longest:])
    done, told = 0, _told(bundle, cases)
    for rows in _batches(lengths):
        items, timestamps = _padded(cases, rows, int(lengths[rows].max()), uses_timestamps=uses_timestamps)
        filters = [ItemFilter(exclude=np.asarray(cases.histories[row], dtype=np.int64)) for row in rows]
        histories = [cases.histories[row][-longest:] for row in rows]
        everywhere, expected = answers.everywhere(histories, (items, timestamps), told.of(rows), filters, temperature)
        for column, found in enumerate(everywhere):
            for row, (best, values) in zip(rows, found, strict=True):
                given[row, column, : len(best)], scores[row, column, : len(best)] = best, values
                quality[row, column] = _ndcg(best, int(cases.targets[row]))
        if expected is not None:
            denoised[rows] = expected
        done += len(rows)
        progress(f"{done:,} of {count:,} requests at every depth")
    return Outcomes(
        depths,
        users=np.asarray(cases.users, dtype=np.int64),
        lengths=lengths.astype(np.int64),
        features=features,
        complexity=complexity,
        quality=quality,
        best=given,
        scores=scores,
        digests=case_digests(cases, longest),
        denoised=None if temperature is None else denoised,
    )


def in_order(test: Outcomes) -> tuple[Outcomes, NDArray[np.bool_]]:
    """The same requests in the order that betting reads them in, and which of them repeat an earlier case, (n,).

    A request's place follows from a hash of its case and of how many equal ones were met before. So the order is as
    good as random, copies are spread evenly, and the first of each case stand as they would without any copies.
    """
    met: Counter[bytes] = Counter()
    keys, repeats = [], []
    for digest in test.digests.tolist():
        keys.append(sha256(digest + met[digest].to_bytes(8, "little")).digest())
        repeats.append(met[digest] > 0)
        met[digest] += 1
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return test.select(order), np.array(repeats, dtype=np.bool_)[order]


def distinct(requests: Outcomes) -> Outcomes:
    """Each case once."""
    ordered, copies = in_order(requests)
    return ordered.select(~copies)


def measure_costs(bundle: Bundle, engine: Engine) -> Costs:
    """Medians of interleaved runs on this machine, from the engine's input to the best ten."""
    answers = _Answers(bundle, engine, bundle.counting)
    lengths = (1, *length_buckets(bundle.manifest.model.max_history))
    depths = answers.depths
    taken = np.empty((ROUNDS + 1, len(lengths), len(depths)))
    filters = [ItemFilter()]
    for turn in range(ROUNDS + 1):
        for row, length in enumerate(lengths):
            history = np.arange(length, dtype=np.int64) % len(bundle.vectors)
            asked = [history], (history[None] + 1, None), filters
            for column, depth in enumerate(depths):
                start_s = time.perf_counter()
                answers.at(depth, *asked)
                taken[turn, row, column] = time.perf_counter() - start_s
    return Costs(depths, np.array(lengths), np.median(taken[1:], axis=0) * 1e3)


def _batches(lengths: NDArray[Any]) -> Iterator[NDArray[np.intp]]:
    """Rows of similar length together."""
    order = np.argsort(lengths, kind="stable")
    end = len(order)
    while end:
        start = max(0, end - max(1, BATCH_TOKENS // int(lengths[order[end - 1]])))
        yield order[start:end]
        end = start


def _padded(
    cases: Cases, rows: NDArray[np.intp], longest: int, *, uses_timestamps: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    items = left_padded([cases.histories[row] + 1 for row in rows.tolist()], longest)
    if not uses_timestamps:
        return items, None
    times = [cases.histories.times(row) for row in rows.tolist()]
    return items, left_padded([() if each is None else each for each in times], longest)


def _ndcg(best: NDArray[np.int64], target: int) -> float:
    if target < 0:
        return np.nan
    place = np.flatnonzero(best == target)
    return float(_DISCOUNTS[place[0]]) if place.size else 0.0
