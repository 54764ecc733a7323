"""The work of the engine's thread: pad a batch, run it, and search for its items."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.errors import UnavailableError
from fathom.runtime.batcher import Again
from fathom.runtime.bundle import Bundle
from fathom.runtime.context import Rows
from fathom.runtime.engines.incremental import CachedHistory, CachedState
from fathom.runtime.engines.interface import Engine
from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Scores, both, sum_of, values_of
from fathom.runtime.live_catalogue import LiveCatalogue, Offer
from fathom.runtime.padding import left_padded
from fathom.runtime.prefix_cache import MISS, CacheHit
from fathom.runtime.reasons import MOST_EXPLAINED, LeaveOneOut, Reasons, falls, reasons_of
from fathom.runtime.request_time import UNKNOWN
from fathom.runtime.retriever import Retriever
from fathom.runtime.rules import MOST_DIVERSE, Arrangement, Found, Ranking, arrange

#: What a plain request asks for, at most: items, and items that are left out.
PLAIN_K, PLAIN_LISTED = 100, 10_000
#: Seconds, about: for each item that is searched, arranged and worded; that is left out or boosted; and for each place
#: that diversity arranges.
ITEM_S, LISTED_S, DIVERSE_S = 1e-6, 2e-8, 3e-5
NO_FILTER = ItemFilter()
#: More than so many seconds beside its run, and a request says nothing about what runs cost.
TYPICAL_S = 1e-4
#: Items of the history whose extension by one is measured at the start.
TRIAL_LENGTH = 64


class BatchItem(NamedTuple):
    """What the engine's thread needs of one request.

    ``ids``: (n,) item index + 1. ``timestamps``: (n,) seconds. ``hit``: what the prefix cache holds of it.
    ``leave_one_out``: where reasons are asked for. ``arrangement``: where there are rules; then ``keep`` is without
    their pins. ``explaining``: what is found already of an answer's reasons. ``gap_s``: see ``gap_of``.
    ``context``: see ``Context.rows``.
    """

    ids: NDArray[np.int64]
    timestamps: NDArray[np.int64] | None
    k: int
    keep: ItemFilter
    hit: CacheHit = MISS
    leave_one_out: LeaveOneOut | None = None
    arrangement: Arrangement | None = None
    explaining: "Explaining | None" = None
    gap_s: int = UNKNOWN
    context: Rows = ()

    @property
    def looked_at(self) -> int:
        """How many of the best items are searched, to return k."""
        return self.k if self.arrangement is None else self.arrangement.rules.looked_at(self.k)

    @property
    def beside_s(self) -> float:
        """About how many seconds it takes beside its run, in this thread and to be worded; 0 for a plain request."""
        listed = len(self.keep.exclude)
        if self.arrangement is None:
            if self.k <= PLAIN_K and listed <= PLAIN_LISTED:
                return 0.0
            return self.k * ITEM_S + listed * LISTED_S
        rules = self.arrangement.rules
        diverse = min(self.k, MOST_DIVERSE) * DIVERSE_S if rules.diversity else 0.0
        return self.looked_at * ITEM_S + (listed + len(rules.boosts[0])) * LISTED_S + diverse


class BatchResult(NamedTuple):
    """One answer, seconds of its whole batch, and what can be cached of it.

    ``user``: as the engine computed it, which the time and the context of the request have no part in.
    """

    indices: Indices
    scores: Scores
    engine_s: float
    retrieval_s: float
    user: NDArray[np.float32] | None = None
    state: CachedState | None = None
    reasons: Reasons = ()


class Explaining(NamedTuple):
    """An answer whose reasons are being found, in several batches.

    ``users``: vectors (width,) of the whole history and then of those that lack an item, as far as they were run.
    ``runs``: how many the next batch runs.
    """

    result: BatchResult
    users: tuple[NDArray[np.float32], ...] = ()
    runs: int = 0


#: Told of a run of the engine: the depth of its deepest request, how many requests, and seconds.
Observer = Callable[[int, int, float], None]


class Runner:
    """Answers batches with one engine.

    ``observer``: told of every run, from the engine's thread, once it is set.
    """

    def __init__(self, bundle: Bundle, catalogue: LiveCatalogue, engine: Engine, retriever: Retriever) -> None:
        self._vectors = bundle.vectors
        self._catalogue = catalogue
        self._max_history = bundle.manifest.model.max_history
        self._uses_timestamps = bundle.manifest.model.uses_timestamps
        self._engine = engine
        self._retriever = retriever
        self._counting = bundle.counting
        self._request_time, self._context = bundle.request_time, bundle.context
        self._counting_weights = bundle.manifest.counting.weights if bundle.manifest.counting else {}
        self.observer: Observer | None = None
        self._trials: dict[int, CachedState] = {}

    def serve(
        self, depths: list[int], works: list[BatchItem]
    ) -> Sequence[BatchResult | UnavailableError | Again[BatchItem]]:
        """One batch of requests, each for its depth: answered, with an error of its own, or to go on in a later one."""
        if all(work.leave_one_out is None for work in works):
            return self.run(depths, works)
        asked = list(zip(depths, works, strict=True))
        begun = [each for each in asked if each[1].explaining is None]
        found = iter(self.run([depth for depth, _ in begun], [work for _, work in begun]) if begun else ())
        return [
            self._explained(depth, work) if work.explaining else _to_explain(work, next(found)) for depth, work in asked
        ]

    def run(self, depths: list[int], works: list[BatchItem]) -> Sequence[BatchResult | UnavailableError]:
        """The same without reasons, for which there is one batch."""
        start_s = time.monotonic()
        computed, states, ran = self._users(depths, works)
        users = self._moved(computed, [work.gap_s for work in works], [work.context for work in works])
        engine_s = time.monotonic()
        if ran:
            self._observe(max(ran), len(ran), engine_s - start_s)
        counted = [self._counted(depth, work) for depth, work in zip(depths, works, strict=True)]
        found = self._search(users, works, [work.looked_at for work in works], counted)
        if any(work.arrangement is not None for work in works):
            found = [
                self._arranged(users[row : row + 1], work, found[row], counted[row]) for row, work in enumerate(works)
            ]
        end_s = time.monotonic()
        # A broken user vector is that request's own error; a sum of finite numbers this small is finite.
        finite = np.isfinite(np.add.reduce(users, axis=1)).tolist()
        return [
            BatchResult(*pair, engine_s - start_s, end_s - engine_s, user, state) if ok else _broken(depth)
            for depth, pair, ok, user, state in zip(depths, found, finite, computed, states, strict=True)
        ]

    def _users(
        self, depths: list[int], works: list[BatchItem]
    ) -> tuple[NDArray[np.float32], Sequence[CachedState | None], list[int]]:
        """User vectors of a batch (n, width), the state of each that one is kept of, and the depths that were run."""
        states: list[CachedState | None] = [None] * len(works)
        plain = [row for row, work in enumerate(works) if work.hit is MISS]
        if len(plain) == len(works):
            return self._engine.run_each(*self._padded(works), depths), states, depths
        users = np.empty((len(works), self._vectors.width), np.float32)
        if plain:
            users[plain] = self._engine.run_each(
                *self._padded([works[row] for row in plain]), [depths[row] for row in plain]
            )
        kept = []
        for row, work in enumerate(works):
            if work.hit.user is not None:
                users[row] = work.hit.user
            elif work.hit is not MISS:
                kept.append(row)
        if kept:
            histories = [CachedHistory(works[row].ids, works[row].timestamps, works[row].hit.state) for row in kept]
            users[kept], found = self._engine.run_incremental(histories, [depths[row] for row in kept])
            for row, state in zip(kept, found, strict=True):
                states[row] = state
        return users, states, [depths[row] for row in (*plain, *kept)]

    def _moved(self, users: NDArray[np.float32], gaps: Sequence[int], contexts: Sequence[Rows]) -> NDArray[np.float32]:
        """User vectors (n, width) as the time and the context of each request have them; what is cached stays."""
        if self._request_time is not None and max(gaps) != UNKNOWN:
            users = self._request_time.moved(users, gaps)
        if self._context is not None and any(contexts):
            users = self._context.moved(users, contexts)
        return users

    def _observe(self, depth: int, requests: int, seconds: float) -> None:
        if self.observer is not None:
            self.observer(depth, requests, seconds)

    def _explained(self, depth: int, work: BatchItem) -> BatchResult | Again[BatchItem]:
        """A result and what its items are due to, after the last part of the runs."""
        assert work.explaining is not None
        assert work.leave_one_out is not None
        start_s = time.monotonic()
        result, users, runs = work.explaining
        histories = [(work.ids - 1, work.timestamps), *work.leave_one_out.histories(self._max_history)]
        users += self._users_of(histories[len(users) : len(users) + runs], depth)
        engine_s = result.engine_s + time.monotonic() - start_s
        if len(users) < len(histories):
            result = result._replace(engine_s=engine_s)
            return Again(partial(_part, work._replace(explaining=Explaining(result, users))))
        items = result.indices[:MOST_EXPLAINED]
        # Where nothing is left of a history, its vector stays zero.
        told = [(work.gap_s, work.context) if user.any() else (UNKNOWN, ()) for user in users]
        moved = self._moved(np.stack(users), *zip(*told, strict=True))
        fallen = falls(self._catalogue.vectors.take(items), moved[0], moved[1:])
        weight = self._counting_weights.get(depth, 0.0)
        counted = np.zeros((0, len(items)))
        if self._counting is not None and weight:
            counted = self._counting.parts(work.ids - 1, items)
        reasons = reasons_of(work.ids - 1, counted, weight, fallen)
        return result._replace(reasons=reasons, engine_s=result.engine_s + time.monotonic() - start_s)

    def _users_of(
        self, histories: Sequence[tuple[Indices, NDArray[np.int64] | None]], depth: int
    ) -> tuple[NDArray[np.float32], ...]:
        """User vectors of some histories; zero where nothing is left of one, as then nothing is of any cosine."""
        rows = [row for row, (items, _) in enumerate(histories) if len(items)]
        users = np.zeros((len(histories), self._vectors.width), np.float32)
        if rows:
            start_s = time.monotonic()
            some = [BatchItem(histories[row][0] + 1, histories[row][1], 1, NO_FILTER) for row in rows]
            users[rows] = self._engine.run(*self._padded(some), depth)
            self._observe(depth, len(rows), time.monotonic() - start_s)
        return tuple(users)

    def _counted(self, depth: int, work: BatchItem) -> Bonus:
        """What the counting exit adds to the cosines of a request's exit."""
        weight = np.float32(self._counting_weights.get(depth, 0.0))
        if self._counting is None or not weight:
            return NO_BONUS
        items, shares = self._counting.shares(work.ids - 1)
        return items, weight * shares

    def _search(
        self, users: NDArray[np.float32], works: Sequence[BatchItem], ks: Sequence[int], counted: Sequence[Bonus]
    ) -> list[tuple[Indices, Scores]]:
        """The best of what is offered now: by cosine, by what counting adds at an exit, and by boosts of items."""
        offer = self._catalogue.latest
        bonuses = [_bonus(work, own, offer) for work, own in zip(works, counted, strict=True)]
        some = bonuses if any(bonus is not NO_BONUS for bonus in bonuses) else None
        return self._retriever.search(users, ks, [work.keep for work in works], some, offer.mask)

    def _arranged(self, user: NDArray[np.float32], work: BatchItem, first: Found, counted: Bonus) -> Found:
        """The best items of one request, ``first``, as its rules arrange them; ``user``: float32 (1, width)."""
        if work.arrangement is None or not np.isfinite(user).all():
            return first
        offer, (rules, pinnable) = self._catalogue.latest, work.arrangement
        if offer.mask is not None:
            pinnable = replace(pinnable, mask=offer.mask if pinnable.mask is None else both(offer.mask, pinnable.mask))

        def best(k: int, keep: ItemFilter) -> Found:
            return self._search(user, [work._replace(keep=keep)], [k], [counted])[0]

        def scores(items: Indices) -> Scores:
            cosines: Scores = self._catalogue.vectors.take(items) @ user[0]
            return cosines + values_of(items, _bonus(work, counted, offer))

        catalogue, asked = self._catalogue, work.looked_at
        ranking = Ranking(best, scores, catalogue.vectors.take, catalogue.categories, catalogue.members)
        first = first[0][:asked], first[1][:asked]
        return arrange(work.k, work.keep, Arrangement(rules, pinnable), ranking, first)

    def _padded(self, items: Sequence[BatchItem]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        longest = max(len(item.ids) for item in items)
        ids = left_padded([item.ids for item in items], longest)
        if not self._uses_timestamps:
            return ids, None
        return ids, left_padded([() if item.timestamps is None else item.timestamps for item in items], longest)

    def try_out(self, depth: int, length: int, requests: int) -> None:
        """What one batch of ordinary requests costs, from padding to the best ten."""
        ids = np.arange(length or min(TRIAL_LENGTH, self._max_history), dtype=np.int64) % len(self._vectors) + 1
        hit = MISS
        if length == 0:
            if depth not in self._trials:
                self._trials[depth] = self._engine.run_incremental([CachedHistory(ids[:-1], None, None)], [depth])[1][0]
            hit = CacheHit("prefix", self._trials[depth], new=1)
        work = BatchItem(ids, None, 10, ItemFilter(exclude=ids - 1), hit=hit)
        self.run([depth] * requests, [work] * requests)

    def capture(self, lengths: Sequence[int], batch_limit: Callable[[int], int]) -> None:
        """Let a GPU meet every shape that requests can have: the first two batches of one are slow."""
        for depth in self._engine.depths:
            for length in lengths:
                most = batch_limit(length)
                for power in range((most - 1).bit_length() + 1):
                    for _ in range(2):
                        self.try_out(depth, length, min(1 << power, most))

    def end_trials(self) -> None:
        """Let go of what only ``try_out`` needs."""
        self._trials.clear()


def _to_explain(
    work: BatchItem, result: BatchResult | UnavailableError
) -> BatchResult | UnavailableError | Again[BatchItem]:
    """How a request goes on that has its answer: with the reasons, if any are asked for."""
    if work.leave_one_out is None or isinstance(result, UnavailableError):
        return result
    return Again(partial(_part, work._replace(explaining=Explaining(result))))


def _part(work: BatchItem, most: int) -> tuple[BatchItem, int]:
    """The next part of the runs for reasons, of at most so many."""
    assert work.explaining is not None
    assert work.leave_one_out is not None
    runs = min(most, 1 + len(work.leave_one_out.left_out) - len(work.explaining.users))
    return work._replace(explaining=work.explaining._replace(runs=runs)), runs


def typical(works: Sequence[BatchItem]) -> bool:
    """Whether a batch costs what was measured for its lanes."""
    return all(
        work.leave_one_out is None
        and (work.hit.reused == "nothing" or work.hit.new == 1)
        and work.beside_s <= TYPICAL_S
        for work in works
    )


def _bonus(work: BatchItem, counted: Bonus, offer: Offer) -> Bonus:
    """What is added to a request's cosines: by counting, and by boosts of the catalogue's owner and its own."""
    bonus = sum_of(offer.boosts, counted) if len(offer.boosts[0]) else counted
    if work.arrangement is not None and len(work.arrangement.rules.boosts[0]):
        bonus = sum_of(bonus, work.arrangement.rules.boosts)
    return bonus


def _broken(depth: int) -> UnavailableError:
    return UnavailableError(f"the engine returned NaN or infinity at depth {depth}; check the bundle")
