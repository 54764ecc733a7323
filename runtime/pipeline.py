"""A request's life: select a depth, fit it to the deadline, wait in a lane, run, retrieve, answer."""

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, DeadlineError, InvalidRequestError, OverloadError, UnavailableError
from fathom.runtime.batcher import Batcher
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import measure
from fathom.runtime.engines.engine import Engine
from fathom.runtime.lanes import Lanes, length_buckets
from fathom.runtime.query import Answer, Query, Timing
from fathom.runtime.retriever import BLOCK_ITEMS, FlatRetriever, Indices, ItemFilter
from fathom.runtime.reuse import NO_STARTS, NOTHING, Memory, Owner, Starts
from fathom.runtime.router import Monitor, Policy, Router
from fathom.runtime.runner import COMPARED_ITEMS, Gate, Result, Runner, Work, typical
from fathom.selector.features import Features
from fathom.selector.features import measure as measure_features
from fathom.selector.policy import LEAST_WEIGHT, Decision, DepthReason, fit_deadline, fits, probing, refusal
from fathom.selector.routing import Cascade

#: Requests that may wait for their second run.
MOST_SECOND_RUNS = 64
#: How long after a refusal requests are looked at with suspicion.
PRESSED_S = 0.1


@dataclass(frozen=True)
class Settings:
    """Everything about a pipeline that is not in the bundle; the only place with its defaults.

    ``threads``: of numpy's products, and the number to give to ``open_engine``. ``max_queue``: waiting requests.
    ``max_batch``: requests; ``max_batch_tokens``: requests x padded length. ``patience_ms``: no request lets later
    ones pass for longer. ``calibration_ms``: time for measuring costs at the start, beyond the least that it takes.
    ``retrieval_items``: items that one search scores at a time. ``policy``: see ``Router``. ``feedback_share``: of the
    requests that a certificate routes elsewhere, the share that is run at the deepest depth too, when the engine is
    idle. ``feedback_alpha``: the probability of a false alarm, ever. ``reuse_mb``: memory for what is kept of
    histories, so that returning ones cost only what is new; 0 for none, and where the engine cannot resume.
    """

    threads: int = 1
    max_queue: int = 1024
    max_batch: int = 32
    max_batch_tokens: int = 2048
    patience_ms: float = 1000.0
    calibration_ms: float = 200.0
    retrieval_items: int = BLOCK_ITEMS
    policy: Policy = "auto"
    feedback_share: float = 0.01
    feedback_alpha: float = 0.01
    reuse_mb: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threads", "max_queue", "max_batch", "max_batch_tokens", "patience_ms", "retrieval_items"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("calibration_ms", "reuse_mb"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not (0 <= self.feedback_share <= 1 and 0 < self.feedback_alpha < 1):
            raise ConfigError(
                f"feedback_share is {self.feedback_share} and feedback_alpha {self.feedback_alpha};"
                " the one lies in [0, 1], the other in (0, 1)"
            )

    @classmethod
    def for_profile(cls, profile: DeviceProfile, **changes: Any) -> Self:
        """The settings that a profile asks for, with ``changes`` on top."""
        own = {name: getattr(profile, name) for name in ("threads", "max_batch", "max_batch_tokens")}
        return cls(**(own | changes))


class _SecondRun(NamedTuple):
    """A routed request, the items that it was given first, and where it is to be run again."""

    work: Work
    first: Indices
    depth: int
    monitor: Monitor


class Pipeline:
    """Answers queries with one bundle and one engine, from one event loop; closes the engine when it closes."""

    def __init__(self, bundle: Bundle, engine: Engine, *, settings: Settings | None = None) -> None:
        self.bundle = bundle
        self.engine = engine
        self.settings = Settings() if settings is None else settings
        self._max_history = bundle.manifest.model.max_history
        self._uses_timestamps = bundle.manifest.model.uses_timestamps
        self._batcher: Batcher[Work, Result] | None = None
        self._accepting = False
        self._pressed_until_s = 0.0
        self.router = Router(
            bundle.certificate, engine.depths, policy=self.settings.policy, alpha=self.settings.feedback_alpha
        )
        self._second_runs: asyncio.Queue[_SecondRun] = asyncio.Queue(MOST_SECOND_RUNS)
        self._feedback: asyncio.Task[None] | None = None
        self._random = random.Random(0)
        remembers = self.settings.reuse_mb and engine.resumes and self._max_history > 1
        self._memory = Memory(int(self.settings.reuse_mb * 2**20)) if remembers else None

    async def start(self) -> None:
        """Warm the engine, measure what every depth costs on this machine, start the engine's thread."""
        settings = self.settings
        limit_blas_threads(settings.threads)
        items, threads = settings.retrieval_items, settings.threads
        device = self.engine.device
        retriever = FlatRetriever(self.bundle.vectors, block_items=items, threads=threads, device=device)
        runner = Runner(self.bundle, self.engine, retriever, remembers=self._memory is not None)
        buckets = length_buckets(self._max_history, remembered=self._memory is not None)
        lanes: Lanes[Any] = Lanes(
            buckets=buckets,
            max_queue=settings.max_queue,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            patience_s=settings.patience_ms / 1e3,
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
        runner.end_trials()
        self._batcher = Batcher(lanes, cost, runner.run, typical=typical)
        self._batcher.start()
        self._feedback = asyncio.create_task(self._run_again())
        self._accepting = True

    @property
    def waiting(self) -> int:
        """Requests that wait for the engine."""
        return self._batcher.waiting if self._batcher else 0

    @property
    def failing(self) -> bool:
        """Whether the engine has failed several times in a row."""
        return self._batcher is not None and self._batcher.failing

    @property
    def remembered(self) -> tuple[int, int]:
        """Histories that are remembered, and the bytes that they take."""
        return (0, 0) if self._memory is None else (len(self._memory), self._memory.nbytes)

    def forget(self, owner: Owner | None = None) -> None:
        """Remember no history of this owner any more; of nobody when None, nor those that are being answered."""
        if self._memory is None:
            return
        if owner is not None:
            self._memory.forget(owner)
        else:
            self._memory = Memory(self._memory.most_bytes)

    def admit(self, items: int, profile: DeviceProfile, depth: int | None, deadline_s: float, client: str) -> None:
        """Raise OverloadError or DeadlineError where ``recommend`` surely would, before a request is looked at.

        ``items``: of its history. Soon after a refusal others are likely, and this is all that they may cost; at other
        times it does nothing.
        """
        now_s = time.monotonic()
        if now_s > self._pressed_until_s or self._batcher is None or not self._accepting:
            return
        length = 0 if self._memory is not None else min(max(items, 1), self._max_history)
        least = self.router.least(profile, depth)
        self._check(least, length, now_s, deadline_s, client, self._batcher)

    def _check(
        self, depth: int, length: int, now_s: float, deadline_s: float, client: str, batcher: Batcher[Work, Result]
    ) -> float:
        """Seconds in the queue; raises where not even this depth can be answered in time, and nobody has to try."""
        queue_s = batcher.queue_s(depth, length, now_s=now_s, deadline_s=deadline_s, client=client)
        cost_s, time_s = batcher.p99_s(depth, length), deadline_s - now_s
        if LEAST_WEIGHT * queue_s + cost_s <= time_s or batcher.may_probe(depth, length, now_s=now_s, time_s=time_s):
            return queue_s
        self._pressed_until_s = now_s + PRESSED_S
        raise refusal(depth, time_s=time_s, queue_s=queue_s, cost_s=cost_s)

    async def recommend(self, query: Query) -> Answer:
        """The k best items for a history, at the depth that the request, its profile and its deadline ask for.

        Raises InvalidRequestError, NotFoundError (a depth that is not served, an unknown category), DeadlineError,
        OverloadError or UnavailableError. Cancelling takes the request out of the queue.
        """
        start_s = time.monotonic()
        batcher = self._batcher
        if batcher is None or not self._accepting:
            raise UnavailableError("the pipeline is starting or draining; try again later")
        seen = self._indices(query, "items")
        items = seen[-self._max_history :]
        timestamps = self._timestamps(query, len(seen))
        if query.k < 1 or not seen.size:
            raise InvalidRequestError(f"k is {query.k} and the history has {seen.size} items; both start at 1")
        ids, times = items + 1, timestamps if self._uses_timestamps else None
        memory = self._memory
        starts = NO_STARTS if memory is None else memory.starts(ids, times, query.owner)
        decision, gate, probe = self._select(query, items, timestamps, starts, batcher, start_s)
        start = NOTHING if gate else starts.at(decision.depth)
        work = Work(ids, times, query.k, self._filter(query, seen), gate, start)
        queued_s = time.monotonic()
        result, began_s = await batcher.run(
            work,
            depth=decision.depth,
            length=start.length(len(items)),
            arrival_s=queued_s,
            deadline_s=query.deadline_s,
            client=query.client,
            probe=probe,
        )
        if memory is not None and result.user is not None and result.kept is not None:
            memory.put(ids, times, result.user, result.kept, query.owner)
        if gate is not None:
            decision = replace(decision, depth=result.depth, why=f"depth {result.depth}, {decision.why}")
        self._sample(query, work, decision, result)
        timing = Timing(
            select_us=int((queued_s - start_s) * 1e6),
            queue_us=int((began_s - queued_s) * 1e6),
            engine_us=int(result.engine_s * 1e6),
            retrieval_us=int(result.retrieval_s * 1e6),
            total_us=int((time.monotonic() - start_s) * 1e6),
        )
        return Answer(result.indices, result.scores, decision, len(items), timing, start.reused)

    async def drain(self) -> None:
        """Take no new requests and return when those inside are answered."""
        self._accepting = False
        if self._batcher:
            await self._batcher.idle()

    def close(self) -> None:
        """Stop at once: what still waits gets UnavailableError. May be called twice."""
        self._accepting = False
        if self._feedback:
            self._feedback.cancel()
        if self._batcher:
            self._batcher.close()
        self.engine.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _select(
        self,
        query: Query,
        items: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
        starts: Starts,
        batcher: Batcher[Work, Result],
        now_s: float,
    ) -> tuple[Decision, Gate | None, bool]:
        """The depth of a request, the gate that lets it leave at an exit before, and whether it is a probe.

        What cannot be answered in time at all is refused before anybody looks at it: under overload that is most.
        """
        deadline_s, seen = query.deadline_s, None

        def p99_s(depth: int) -> float:
            return batcher.p99_s(depth, (NOTHING if gate else starts.at(depth)).length(len(items)))

        def look() -> tuple[Features, float]:
            nonlocal seen
            seen = measure_features(items, timestamps, self.bundle.tables)
            return seen, self.bundle.complexity.score(seen)

        gate: Gate | None = None
        queue_s, least, length = 0.0, 0, 0
        if deadline_s is not None:
            least = self.router.least(query.profile, query.depth)
            length = starts.at(least).length(len(items))
            queue_s = self._check(least, length, now_s, deadline_s, query.client, batcher)
        decision = self.router.decide(query.profile, look, items, query.depth)
        if decision.reason is DepthReason.CERTIFIED:
            route = self.router.route(query.profile)
            if route and seen and isinstance(route.routing, Cascade):
                gate = Gate(route.routing, seen)
        if deadline_s is None or fits(queue_s, p99_s(decision.depth), deadline_s - now_s):
            return decision, gate, False
        try:
            fitted = fit_deadline(
                decision,
                now_s=now_s,
                deadline_s=deadline_s,
                queue_s=queue_s,
                cost_p99_s={depth: p99_s(depth) for depth in self.engine.depths},
                allowed=query.profile.depths,
            )
        except (DeadlineError, OverloadError):
            # A cascade starts anew where the depth alone could go on from what is remembered.
            if not batcher.may_probe(least, length, now_s=now_s, time_s=deadline_s - now_s):
                raise
            return probing(decision, least), None, True
        return fitted, gate if fitted is decision else None, False

    def _sample(self, query: Query, work: Work, decision: Decision, result: Result) -> None:
        """Perhaps note a routed request, to be run at the deepest depth too; what does not fit in is forgotten.

        Only requests such as were certified: without filters.
        """
        if decision.reason is not DepthReason.CERTIFIED or query.k < COMPARED_ITEMS or query.is_filtered:
            return
        route = self.router.route(query.profile)
        if route is None or route.monitor is None or route.monitor.alarm or decision.depth == route.deepest:
            return
        if self._random.random() < self.settings.feedback_share and not self._second_runs.full():
            first = result.indices[:COMPARED_ITEMS]
            self._second_runs.put_nowait(_SecondRun(work, first, route.deepest, route.monitor))

    async def _run_again(self) -> None:
        """Run what was noted at the deepest depth, one at a time, whenever the engine has nothing else to do."""
        batcher = self._batcher
        assert batcher is not None
        while True:
            second = await self._second_runs.get()
            await batcher.idle()
            work = second.work._replace(k=COMPARED_ITEMS, gate=None, start=NOTHING)
            try:
                result, _ = await batcher.run(
                    work, depth=second.depth, length=len(work.ids), arrival_s=time.monotonic(), deadline_s=None
                )
            except (OverloadError, UnavailableError):
                continue
            if len(result.indices):
                same = np.intersect1d(second.first, result.indices, assume_unique=True)
                second.monitor.add(len(same) / len(result.indices))

    def _timestamps(self, query: Query, given: int) -> NDArray[np.int64] | None:
        if query.timestamps is None:
            return None
        timestamps = np.asarray(query.timestamps, dtype=np.int64)
        if len(timestamps) != given:
            raise InvalidRequestError(f"{len(timestamps)} timestamps for {given} items; give one per item or none")
        return timestamps[-self._max_history :]

    def _filter(self, query: Query, seen: NDArray[np.int64]) -> ItemFilter:
        exclude = self._indices(query, "exclude") if len(query.exclude) else None
        if not query.include_seen:
            exclude = seen if exclude is None else np.concatenate((seen, exclude))
        return ItemFilter(
            exclude=np.empty(0, np.int64) if exclude is None else exclude,
            allow=None if query.allow is None else self._indices(query, "allow"),
            mask=self.bundle.catalogue.category_mask(query.categories) if query.categories else None,
        )

    def _indices(self, query: Query, name: str) -> NDArray[np.int64]:
        """One of a query's lists of items; raises InvalidRequestError when it holds anything else."""
        values, n = getattr(query, name), len(self.bundle.vectors)
        array: NDArray[np.int64] = np.asarray(values, dtype=np.int64)
        # Seen as unsigned, a negative index is a huge one: one comparison finds both mistakes.
        if not query.checked and array.size and int(array.view(np.uint64).max()) >= n:
            raise InvalidRequestError(f"{name} holds an index outside 0..{n - 1}")
        return array
