"""What a bundle answers to requests whose right answer is known, at every depth, and what each answer costs."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.bundle import Bundle
from fathom.runtime.counting import Counting
from fathom.runtime.engines.interface import Engine
from fathom.runtime.item_filter import Bonus, Indices, ItemFilter, Scores
from fathom.runtime.lanes import length_buckets
from fathom.runtime.padding import left_padded
from fathom.runtime.retriever import FlatRetriever
from fathom.selector.features import Features
from fathom.selector.routing import CONFIDENCE, RoutingInputs, confidence
from fathom.selector.schema import Floats
from fathom.training.splits import Cases

#: Input ids (rows, length) and timestamps of the same shape, for an engine.
Items = tuple[NDArray[np.int64], NDArray[np.int64] | None]
#: Item indices, oldest first.
History = NDArray[np.integer]
#: Items, best first, and their scores.
Found = tuple[Indices, Scores]
#: Items that count, and that are compared.
K = 10
#: Requests x padded length of one batch.
BATCH_TOKENS = 4096
ROUNDS = 15


@dataclass(frozen=True)
class Outcomes:
    """One row per request. ``depths``: those of the bundle, ascending, D of them; 0 first where it counts.

    users int (n,): whose request. lengths int (n,): items that the engine sees. features (n, features): as
    ``selector.features``. complexity (n,). quality (n, D): NDCG@10. best int (n, D, 10): the items given, -1 where
    there are fewer. confidence (n, D, 3): see ``routing.CONFIDENCE``. digests V32 (n,): see ``case_digests``.
    """

    depths: tuple[int, ...]
    users: NDArray[np.int64]
    lengths: NDArray[np.int64]
    features: Floats
    complexity: Floats
    quality: Floats
    best: NDArray[np.int64]
    confidence: Floats
    digests: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def agreement(self) -> Floats:
        """The share of the top 10 at the deepest depth that each depth gives too, (n, D)."""
        deepest = self.best[:, -1]
        given = (self.best[:, :, :, None] == deepest[:, None, None, :]) & (deepest >= 0)[:, None, None, :]
        share: Floats = given.any(2).sum(-1) / np.maximum((deepest >= 0).sum(-1), 1)[:, None]
        return share

    @property
    def routing_inputs(self) -> RoutingInputs:
        """What a routing may know of the requests."""
        return RoutingInputs(self.features, self.complexity, self.confidence)

    def select(self, rows: NDArray[Any]) -> Self:
        """Some rows, by index (m,) or mask (n,)."""
        parts = [getattr(self, field.name) for field in fields(self)[1:]]
        return type(self)(self.depths, *(part[rows] for part in parts))

    def at_depths(self, depths: tuple[int, ...]) -> Self:
        """The columns of some depths."""
        columns = [self.depths.index(depth) for depth in depths]
        by_depth = (self.quality[:, columns], self.best[:, columns], self.confidence[:, columns])
        return type(self)(depths, self.users, self.lengths, self.features, self.complexity, *by_depth, self.digests)


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a request alone in its batch, by history length: interpolated between ``lengths`` (m,).

    alone (m, D): a request that goes to one depth. walked (m, D): one that reads every exit on its way, which depth 0
    is not.
    """

    depths: tuple[int, ...]
    lengths: NDArray[np.int64]
    alone: Floats
    walked: Floats

    def of(self, lengths: NDArray[np.int64], *, walked: bool = False) -> Floats:
        """Milliseconds (n, D) of requests of these lengths (n,)."""
        table = self.walked if walked else self.alone
        return np.column_stack([np.interp(lengths, self.lengths, column) for column in table.T])

    def at_depths(self, depths: tuple[int, ...]) -> "Costs":
        """The columns of some depths."""
        columns = [self.depths.index(depth) for depth in depths]
        return Costs(depths, self.lengths, self.alone[:, columns], self.walked[:, columns])


class _Answers:
    """The best items of requests, as a server finds them: counting beside the network, or alone at depth 0."""

    def __init__(self, bundle: Bundle, engine: Engine, counting: Counting | None) -> None:
        info = bundle.manifest.counting
        self._retriever, self._engine, self._counting = FlatRetriever(bundle.vectors), engine, counting
        self._weights = {} if counting is None or info is None else info.weights
        self.depths = engine.depths if counting is None else (0, *engine.depths)

    def at(self, depth: int, histories: Sequence[History], items: Items, filters: Sequence[ItemFilter]) -> list[Found]:
        """At one depth. ``items``: the histories as the engine takes them."""
        if not depth:
            return self._counted(histories, filters)
        return self._found(depth, self._engine.run(*items, depth), filters, self._shares((depth,), histories))

    def walk(self, histories: Sequence[History], items: Items, filters: Sequence[ItemFilter]) -> Iterator[list[Found]]:
        """At every depth that the engine has, going on from the one before."""
        shares = self._shares(self._engine.depths, histories)
        for depth, users in zip(self._engine.depths, self._engine.walk(*items, self._engine.depths), strict=True):
            yield self._found(depth, users, filters, shares)

    def everywhere(
        self, histories: Sequence[History], items: Items, filters: Sequence[ItemFilter]
    ) -> Iterator[list[Found]]:
        """At each of ``depths``."""
        if self._counting is not None:
            yield self._counted(histories, filters)
        yield from self.walk(histories, items, filters)

    def _counted(self, histories: Sequence[History], filters: Sequence[ItemFilter]) -> list[Found]:
        assert self._counting is not None
        return [self._counting.best(history, K, keep) for history, keep in zip(histories, filters, strict=True)]

    def _shares(self, depths: Sequence[int], histories: Sequence[History]) -> list[Bonus]:
        if self._counting is None or not any(self._weights[depth] for depth in depths):
            return []
        return [self._counting.shares(history) for history in histories]

    def _found(
        self, depth: int, users: NDArray[np.float32], filters: Sequence[ItemFilter], shares: Sequence[Bonus]
    ) -> list[Found]:
        weight = np.float32(self._weights.get(depth, 0.0))
        bonuses = [(items, weight * values) for items, values in shares] if weight else None
        return self._retriever.search(users, [K] * len(users), filters, bonuses)


def measure_outcomes(
    bundle: Bundle,
    engine: Engine,
    cases: Cases,
    *,
    counting: Counting | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcomes:
    """Ask every case of every depth, through the engine and the search that a server would use.

    ``counting``: what takes the place of the bundle's counting exit, where it has one; it must not have counted the
    targets of the cases.
    """
    answers = _Answers(bundle, engine, bundle.counting and (counting or bundle.counting))
    longest = bundle.manifest.model.max_history
    uses_timestamps = bundle.manifest.model.uses_timestamps
    lengths = np.minimum(cases.histories.lengths, longest)
    depths, count = answers.depths, len(cases)
    quality, given = np.zeros((count, len(depths))), np.full((count, len(depths), K), -1)
    certainty = np.zeros((count, len(depths), len(CONFIDENCE)))
    features = np.empty((count, len(Features._fields)))
    complexity = np.empty(count)
    for row in range(count):
        history, times = cases.histories[row][-longest:], cases.histories.times(row)
        features[row], complexity[row] = bundle.inspect(history, None if times is None else times[-longest:])
    done = 0
    for rows in _batches(lengths):
        items, timestamps = _padded(cases, rows, int(lengths[rows].max()), uses_timestamps=uses_timestamps)
        filters = [ItemFilter(exclude=np.asarray(cases.histories[row], dtype=np.int64)) for row in rows]
        histories = [cases.histories[row][-longest:] for row in rows]
        for column, found in enumerate(answers.everywhere(histories, (items, timestamps), filters)):
            for row, (best, scores) in zip(rows, found, strict=True):
                quality[row, column] = _ndcg(best, int(cases.targets[row]))
                given[row, column, : len(best)] = best
                certainty[row, column] = confidence(scores)
        done += len(rows)
        progress(f"{done:,} of {count:,} requests at every depth")
    users = np.asarray(cases.users, dtype=np.int64)
    digests = case_digests(cases, longest)
    return Outcomes(depths, users, lengths.astype(np.int64), features, complexity, quality, given, certainty, digests)


def case_digests(cases: Cases, longest: int) -> NDArray[np.void]:
    """What identifies a case: sha256 of its newest ``longest`` items, oldest first, and of the target; V32 (n,).

    Times do not count: a copy of a user at another time is still a copy.
    """
    targets = cases.targets.astype("<i4")
    histories = (cases.histories[row][-longest:].astype("<i4").tobytes() for row in range(len(cases)))
    found = [sha256(items + target.tobytes()).digest() for items, target in zip(histories, targets, strict=True)]
    return np.array(found, dtype="V32")


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
    taken = np.empty((2, ROUNDS + 1, len(lengths), len(depths)))
    filters = [ItemFilter()]
    for turn in range(ROUNDS + 1):
        for row, length in enumerate(lengths):
            history = np.arange(length, dtype=np.int64) % len(bundle.vectors)
            asked = [history], (history[None] + 1, None), filters
            for column, depth in enumerate(depths):
                start_s = time.perf_counter()
                answers.at(depth, *asked)
                taken[:, turn, row, column] = time.perf_counter() - start_s
            start_s = time.perf_counter()
            for column, _ in enumerate(answers.walk(*asked), len(depths) - len(engine.depths)):
                taken[1, turn, row, column] = time.perf_counter() - start_s
    alone, walked = np.median(taken[:, 1:], axis=1) * 1e3
    return Costs(depths, np.array(lengths), alone, walked)


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
    place = np.flatnonzero(best == target)
    return float(1 / np.log2(place[0] + 2)) if place.size else 0.0
