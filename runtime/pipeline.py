"""A request's life: choose a depth, wait in a lane, run, retrieve, answer."""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any, Self

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, DeadlineError, OverloadError, RequestError, UnavailableError
from fathom.runtime.batcher import Batcher
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import measure
from fathom.runtime.depth_zero import DepthZero
from fathom.runtime.drift import DriftWatch
from fathom.runtime.engines.interface import Engine
from fathom.runtime.estimates import BatcherEstimates
from fathom.runtime.feedback import Feedback
from fathom.runtime.futures import settle
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import Indices, ItemFilter, Scores, both
from fathom.runtime.lanes import Lanes
from fathom.runtime.live_catalogue import LiveCatalogue, Offer
from fathom.runtime.padding import length_buckets
from fathom.runtime.prefix_cache import NO_HITS, CacheHits, Owner, PrefixCache, Reused
from fathom.runtime.query import (
    Answer,
    IndexedQuery,
    QueryHistory,
    Timing,
    arrangement_of,
    filter_of,
    history_of,
    leave_one_out,
)
from fathom.runtime.reasons import MOST_EXPLAINED, Reasons
from fathom.runtime.recent import Recent
from fathom.runtime.request_time import gap_of
from fathom.runtime.runner import BatchItem, BatchResult, Observer, Runner, typical
from fathom.runtime.settings import PipelineSettings
from fathom.runtime.shares import Client
from fathom.selector.choice import Choice, DepthReason, DepthRequest
from fathom.selector.chooser import DepthChooser
from fathom.selector.drift import FeatureDrift, training_scales

#: Gets an answer, or why there is none.
Done = Callable[[Answer | Exception], None]
#: Takes a request out of the queue.
Leave = Callable[[], object]


@dataclass(slots=True)
class _Asked:
    """A request as it has come: what is known of it before its depth is chosen."""

    query: IndexedQuery
    history: QueryHistory
    cache: PrefixCache | None
    hits: CacheHits
    start_s: float
    behind: bool

    @property
    def by_s(self) -> float:
        """Its deadline; infinite without one."""
        return math.inf if self.query.deadline_s is None else self.query.deadline_s


@dataclass(slots=True)
class _Waiting:
    """A request in the queue, and who waits for it."""

    asked: _Asked
    choice: Choice
    work: BatchItem
    queued_s: float
    done: Done


class Pipeline:
    """Answers queries with one bundle and one engine, from one event loop; closes the engine when it closes.

    ``catalogue``: of the same bundle, the one that the engine looks vectors up in; None: it never changes.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        settings: PipelineSettings | None = None,
        catalogue: LiveCatalogue | None = None,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.catalogue = LiveCatalogue(bundle) if catalogue is None else catalogue
        self.settings = PipelineSettings() if settings is None else settings
        self._max_history = bundle.manifest.model.max_history
        self._uses_timestamps = bundle.manifest.model.uses_timestamps
        self._batcher: Batcher[BatchItem, BatchResult] | None = None
        self._runner: Runner | None = None
        self._accepting = False
        self._largest: Callable[[], None] = _nothing
        self._recent = Recent()
        self._zero = None if bundle.counting is None else DepthZero(bundle.counting)
        self._probes: set[asyncio.Task[None]] = set()
        alpha = self.settings.feedback_alpha
        self.chooser = DepthChooser(
            bundle.certificate,
            self.depths,
            policy=self.settings.policy,
            alpha=alpha,
            recertify=self.settings.recertify == "auto",
            at_share=bundle.complexity.at_share,
        )
        self.drift = FeatureDrift(training_scales(bundle.complexity), alpha)
        self._drift_watch = DriftWatch(self.drift, self.catalogue.inspect, self.settings.feedback_share)
        self._feedback: Feedback | None = None
        caches = self.settings.reuse_mb and engine.incremental and self._max_history > 1
        extension = bundle.manifest.extension
        span = 0 if extension is None else extension.span
        self._cache = PrefixCache(int(self.settings.reuse_mb * 2**20), self._max_history, span) if caches else None

    async def start(self) -> None:
        """Warm the engine, measure what every depth costs on this machine, start the engine's thread."""
        settings = self.settings
        limit_blas_threads(settings.threads)
        items, threads = settings.retrieval_items, settings.threads
        device = self.engine.device
        vectors = self.catalogue.vectors
        retriever = open_retriever(self.bundle, vectors, block_items=items, threads=threads, device=device)
        runner = self._runner = Runner(self.bundle, self.catalogue, self.engine, retriever)
        buckets = length_buckets(self._max_history, cached=self._cache is not None)
        lanes: Lanes[Any] = Lanes(
            buckets=buckets,
            max_queue=settings.max_queue,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            patience_s=settings.patience_ms / 1e3,
            mixes=self.engine.mixes,
        )
        if device == "cuda":
            await asyncio.to_thread(runner.capture, buckets, lanes.batch_limit)
        cost = await asyncio.to_thread(
            measure,
            runner.try_out,
            depths=self.engine.depths,
            lengths=buckets,
            batch_limit=lanes.batch_limit,
            budget_s=settings.calibration_ms / 1e3,
        )
        self._largest = partial(runner.try_out, self.engine.depths[-1], buckets[-1], lanes.batch_limit(buckets[-1]))
        runner.end_trials()
        if self._zero is not None:
            await asyncio.to_thread(self._zero.measure, self._max_history)
        self._batcher = Batcher(lanes, cost, runner.serve, typical=typical)
        self._batcher.start()
        self._feedback = Feedback(self._batcher, settings.feedback_share, self._count_again)
        self._accepting = True

    def observe(self, observer: Observer) -> None:
        """From now on tell ``observer`` of every run of the engine, in the engine's thread."""
        assert self._runner is not None, "start() comes first"
        self._runner.observer = observer

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that are served, ascending: the engine's, and 0 where the bundle has a counting exit."""
        return self.engine.depths if self._zero is None else (0, *self.engine.depths)

    async def run_largest(self) -> None:
        """Run a batch as large as the settings allow, for the memory that it takes; before there are requests."""
        await asyncio.to_thread(self._largest)

    def p99_s(self, depth: int) -> float:
        """Seconds that 99 of 100 requests of the longest history keep to at an engine's depth, once they start."""
        assert self._batcher is not None, "start() comes first"
        return self._batcher.p99_s(depth, self._max_history)

    @property
    def waiting(self) -> int:
        """Requests that wait for the engine."""
        return self._batcher.waiting if self._batcher else 0

    @property
    def failing(self) -> bool:
        """Whether the engine has failed several times in a row."""
        return self._batcher is not None and self._batcher.failing

    @property
    def cached(self) -> tuple[int, int]:
        """Histories in the prefix cache, and the bytes that they take."""
        return (0, 0) if self._cache is None else (len(self._cache), self._cache.nbytes)

    def check_grows(self) -> None:
        """Raise ConfigError where no items can be added, because the engine has the vectors of all items built in."""
        if not self.engine.grows:
            raise ConfigError(
                f"{self.bundle.path}: its engine ({self.engine.name}) knows only the items that it was opened with;"
                " serve with --device cpu, or export the bundle again, to change the catalogue"
            )

    def forget(self, owner: Owner | None = None) -> None:
        """Drop this owner's histories from the prefix cache (everyone's if None), including those being answered."""
        if self._cache is None:
            return
        if owner is not None:
            self._cache.forget(owner)
        else:
            self._cache = self._cache.empty()

    def admit(
        self,
        items: int,
        profile: DeviceProfile,
        depth: int | None,
        deadline_s: float | None,
        client: Client,
        *,
        behind: bool = False,
    ) -> None:
        """Raise OverloadError or DeadlineError where ``enter`` surely would, before a request is read.

        ``items``: of its history. Soon after a refusal others are likely, and this is all that they may cost; at other
        times it does nothing.
        """
        now_s = time.monotonic()
        if not self._recent.pressed(now_s) or self._batcher is None or not self._accepting:
            return
        # What the cache may hold of the history is not known yet: the least that it can cost.
        items = min(max(items, 1), self._max_history)
        length = 0 if self._cache is not None else items
        by_s = math.inf if deadline_s is None else deadline_s
        estimates = BatcherEstimates(self._batcher, self._zero, NO_HITS, length, now_s, by_s, client, behind=behind)
        kind, left_s = (client, profile.depths, depth, length, None), by_s - now_s
        try:
            self._recent.tell(kind, left_s, now_s, partial(self.chooser.admit, profile, depth, estimates))
        except (DeadlineError, OverloadError):
            self._turned_away(depth, items, now_s)
            raise

    async def recommend(self, query: IndexedQuery) -> Answer:
        """The k best items for a history, at the depth that the request, its profile and its deadline ask for.

        Raises InvalidRequestError, NotFoundError (a depth that is not served, an unknown category), DeadlineError,
        OverloadError or UnavailableError. Cancelling takes the request out of the queue, which depth 0 does not have.
        """
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        leave = self.enter(query, settle(found))
        try:
            return await found
        except asyncio.CancelledError:
            leave()
            raise

    def enter(self, query: IndexedQuery, done: Done, *, behind: bool = False) -> Leave:
        """The same without waiting: ``done`` gets the answer or the error, in this event loop.

        Perhaps before this returns; and what is found wrong at once is raised. Returns what takes the request out of
        the queue. ``behind``: more requests arrive than can be answered, so each should cost as little as it may.
        """
        start_s = time.monotonic()
        batcher = self._batcher
        if batcher is None or not self._accepting:
            raise UnavailableError("the pipeline is starting or draining; try again later")
        counts = self._zero is not None and not query.depth
        history = history_of(query, len(self.catalogue), self._max_history, may_be_empty=counts)
        ids, times = history.items + 1, history.timestamps if self._uses_timestamps else None
        cache = self._cache
        hits = NO_HITS if cache is None or not len(ids) else cache.lookup(ids, times, query.owner, query.scope)
        asked = _Asked(query, history, cache, hits, start_s, behind)
        if query.depth is None and len(ids):
            self._drift_watch.offer(history)
        choice = self._choose(asked)
        if not choice.depth:
            done(self._count(asked, choice))
            return _nothing
        hit = hits.at(choice.depth)
        keep, arrangement = arrangement_of(query, filter_of(query, history.seen, self.catalogue), len(self.catalogue))
        self.catalogue.offer()  # What has expired by now is not searched.
        leaves = leave_one_out(query, history) if query.include_reasons else None
        gap_s = gap_of(query.asked_s, history.timestamps)
        work = BatchItem(ids, times, query.k, keep, hit, leaves, arrangement, gap_s=gap_s, context=query.context)
        waiting = _Waiting(asked, choice, work, time.monotonic(), done)
        return self._queue(waiting, batcher)

    def _queue(self, waiting: "_Waiting", batcher: Batcher[BatchItem, BatchResult]) -> Leave:
        """Let a request wait for the engine; where the queue is full it gets depth 0, or OverloadError is raised."""
        query, work, choice = waiting.asked.query, waiting.work, waiting.choice
        try:
            entry = batcher.submit(
                work,
                partial(self._settle, waiting),
                depth=choice.depth,
                length=work.hit.length(len(work.ids)) if work.leave_one_out is None else len(work.ids),
                arrival_s=waiting.queued_s,
                deadline_s=query.deadline_s,
                client=query.client,
                beside_s=work.beside_s,
                probe=choice.probe,
                sure=self.chooser.may_count(query.profile, query.depth),
            )
        except OverloadError as refused:
            waiting.done(self._instead(waiting, refused))
            return _nothing
        return partial(batcher.cancel, entry)

    def _settle(self, waiting: "_Waiting", result: BatchResult | RequestError, began_s: float) -> None:
        """Tell who waits what became of a request."""
        try:
            if isinstance(result, BatchResult):
                answer = self._answered(waiting, result, began_s)
            elif isinstance(result, DeadlineError | OverloadError):
                answer = self._instead(waiting, result)
            else:
                raise result
        except Exception as error:
            waiting.done(error)
        else:
            waiting.done(answer)

    def _answered(self, waiting: "_Waiting", result: BatchResult, began_s: float) -> Answer:
        asked, work, choice = waiting.asked, waiting.work, waiting.choice
        # The cache as it was then: what has been forgotten meanwhile must not come back.
        cache = asked.cache
        if cache is not None and result.user is not None and work.hit.user is None:
            query = asked.query
            cache.put(work.ids, work.timestamps, choice.depth, result.user, result.state, query.owner, query.scope)
        self._offer(asked.query, work, result.indices, choice)
        timing = Timing.of(asked.start_s, waiting.queued_s, began_s, result.engine_s, result.retrieval_s)
        return self._answer(
            result.indices, result.scores, choice, asked.history, timing, work.hit.reused, result.reasons
        )

    def _instead(self, waiting: "_Waiting", refused: DeadlineError | OverloadError) -> Answer:
        """Depth 0 for what the engine will not do in time; raises ``refused`` where that cannot be."""
        choice = self.chooser.instead(self._request(waiting.asked, time.monotonic()), refused)
        return self._count(waiting.asked, choice, waiting.queued_s)

    def _answer(
        self,
        items: Indices,
        scores: Scores,
        choice: Choice,
        history: QueryHistory,
        timing: Timing,
        reused: Reused = "nothing",
        reasons: Reasons = (),
    ) -> Answer:
        """An answer without what was taken out of the catalogue, or moved in it, since the request was read."""
        left = self.catalogue.left(items, history.catalogue_items)
        if left is not None and not left.all():
            items, scores, reasons = items[left], scores[left], tuple(compress(reasons, left.tolist()))
        return Answer(items, scores, choice, len(history.items), timing, reused, self.catalogue.version, reasons)

    def _offer(self, query: IndexedQuery, work: BatchItem, given: Indices, choice: Choice) -> None:
        """Offer an answered request for a second run; the certificate covers only those without filters."""
        if self._feedback is not None and choice.agreement_check is not None and not query.is_filtered:
            self._feedback.offer(work._replace(leave_one_out=None), choice.depth, given, choice.agreement_check)

    def _request(self, asked: _Asked, now_s: float) -> DepthRequest:
        assert self._batcher is not None, "start() comes first"
        query, history, hits = asked.query, asked.history, asked.hits
        runs = leave_one_out(query, history).runs if query.include_reasons else 1
        if runs > 1:
            hits = NO_HITS
        estimates = BatcherEstimates(
            self._batcher, self._zero, hits, len(history.items), now_s, asked.by_s, query.client, runs, asked.behind
        )
        inspect = partial(self.catalogue.inspect, history.items, history.timestamps)
        return DepthRequest(query.profile, history.items, inspect, query.depth, estimates, query.policy)

    def _choose(self, asked: _Asked) -> Choice:
        query, items, now_s = asked.query, len(asked.history.items), asked.start_s

        def decide() -> Choice:
            return self.chooser.choose(self._request(asked, now_s))

        try:
            # Some cost something else than others of this length. Of a stranger the engine wants nothing.
            if asked.hits.found or asked.hits.slid or query.include_reasons or not items:
                choice = decide()
            else:
                kind = query.client, query.profile.depths, query.depth, items, query.policy
                choice = self._recent.tell(kind, asked.by_s - now_s, now_s, decide)
        except (DeadlineError, OverloadError):
            self._recent.press(now_s)
            self._turned_away(query.depth, items, now_s)
            raise
        if not choice.depth and choice.reason is DepthReason.DEADLINE:
            self._turned_away(None, items, now_s)
        return choice

    def _turned_away(self, fixed: int | None, items: int, now_s: float) -> None:
        assert self._batcher is not None, "start() comes first"
        self._batcher.turned_away(fixed or self.engine.depths[0], items, now_s)

    def _count(self, asked: _Asked, choice: Choice, queued_s: float | None = None) -> Answer:
        """The answer of depth 0; ``queued_s``: since when it has waited for the engine, if it has."""
        assert self._zero is not None, "the chooser was told that depth 0 is not served"
        query, history, began_s = asked.query, asked.history, time.monotonic()
        asked_for = filter_of(query, history.seen, self.catalogue)
        offer, n = self.catalogue.offer(), len(self.catalogue)
        keep, arrangement = arrangement_of(query, _offered(asked_for, offer), n)
        arranged = None if arrangement is None else (arrangement, self.catalogue)
        indices, scores = self._zero.answer(
            history.items, query.k, keep, began_s, n=n, bonus=offer.boosts, arranged=arranged
        )
        reasons = self._zero.reasons(history.items, indices[:MOST_EXPLAINED]) if query.include_reasons else ()
        waited_s = began_s if queued_s is None else queued_s
        timing = Timing.of(asked.start_s, waited_s, began_s, 0.0, time.monotonic() - began_s)
        if choice.probe or choice.agreement_check is not None:
            times = history.timestamps if self._uses_timestamps else None
            gap_s = gap_of(query.asked_s, history.timestamps)
            work = BatchItem(history.items + 1, times, query.k, asked_for, gap_s=gap_s, context=query.context)
            self._offer(query, work, indices, choice)
            if choice.probe:
                probe = asyncio.create_task(self._probe(work._replace(keep=keep)))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)
        return self._answer(indices, scores, choice, history, timing, reasons=reasons)

    def _count_again(self, work: BatchItem) -> Indices:
        """The items of depth 0 for a request that was answered at another depth."""
        assert self._zero is not None, "the certificate covers depth 0, but it is not served"
        offer, n = self.catalogue.offer(), len(self.catalogue)
        keep = _offered(work.keep, offer)
        return self._zero.answer(work.ids - 1, work.k, keep, time.monotonic(), n=n, bonus=offer.boosts)[0]

    async def _probe(self, work: BatchItem) -> None:
        """Run a request that has its answer at the shallowest depth, for what that shows of the engine's speed."""
        assert self._batcher is not None, "start() comes first"
        with suppress(OverloadError, UnavailableError):
            await self._batcher.run(
                work,
                depth=self.engine.depths[0],
                length=len(work.ids),
                arrival_s=time.monotonic(),
                probe=True,
            )

    async def drain(self) -> None:
        """Take no new requests and return when those inside are answered."""
        self._accepting = False
        if self._batcher:
            await self._batcher.idle()

    def close(self) -> None:
        """Stop at once: what still waits gets UnavailableError. May be called twice."""
        self._accepting = False
        if self._feedback:
            self._feedback.close()
        if self._batcher:
            self._batcher.close()
        self.engine.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _offered(keep: ItemFilter, offer: Offer) -> ItemFilter:
    """What a filter lets through of what may be returned now."""
    if offer.mask is None:
        return keep
    return replace(keep, mask=offer.mask if keep.mask is None else both(offer.mask, keep.mask))


def _nothing() -> None:
    """What is answered has no place in the queue."""
