"""The engine's thread and the way to it from the event loop; who goes next is decided in lanes.py."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from fathom.errors import DeadlineError, OverloadError, RequestError, UnavailableError
from fathom.runtime.cost import CostModel, Demand, Lag
from fathom.runtime.futures import settle
from fathom.runtime.lane import Entry
from fathom.runtime.lanes import Lanes, Taken
from fathom.runtime.shares import ANYBODY, Client

Work = TypeVar("Work")
Result = TypeVar("Result")

#: When nothing has run for so long, a request that is refused may be refused wrongly.
PROBE_AFTER_S = 0.1
#: Batches in a row whose failure is more than bad luck.
MOST_FAILURES = 3
#: No more work than this, and than this share of the time to the deadline, is all counted as if it went before.
LITTLE_S, LITTLE_SHARE = 0.2, 1 / 32
CLOSED = "the engine is closed; call another server"

log = logging.getLogger("fathom.runtime")


#: Called once, in the event loop, with a request's result, or why there is none, and when its batch began.
Done = Callable[[Result | RequestError, float], None]


@dataclass(frozen=True, slots=True)
class Again(Generic[Work]):
    """In place of a result: work that goes on in a later batch, so that others have their turn in between.

    ``part``: makes the next part of it, of at most so many runs, and says how many those are.
    """

    part: Callable[[int], tuple[Work, int]]


class Job(Generic[Work, Result]):
    """What waits in a lane: the work, who wants its result, and whether it was let in to see how fast the engine is."""

    __slots__ = ("began_s", "done", "entry", "gone", "probe", "work")

    def __init__(self, work: Work, done: Done[Result], probe: bool) -> None:
        self.work = work
        self.done = done
        self.probe = probe
        #: Where it takes several batches: when the first began, and what waits for the next.
        self.began_s: float | None = None
        self.entry: Entry[Job[Work, Result]] | None = None
        #: Nobody waits for it any more.
        self.gone = False


class Batcher(Generic[Work, Result]):
    """Work-conserving batching: whenever the engine is free and something waits, it runs.

    ``serve(depths, works)`` returns one result per work, the error of that one, or how it goes on, in the engine's
    thread. ``typical``: whether such a batch takes as long as any of these depths, so that something is learned from
    its time. ``clock``: seconds, as ``time.monotonic``. Everything but ``serve`` and ``typical`` is called from one
    event loop.
    """

    def __init__(
        self,
        lanes: "Lanes[Job[Work, Result]]",
        cost: CostModel,
        serve: Callable[[list[int], list[Work]], Sequence[Result | UnavailableError | Again[Work]]],
        *,
        typical: Callable[[list[Work]], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes = lanes
        self._cost = cost
        self._serve = serve
        self._typical = typical
        self._clock = clock
        # Guards the lanes, the cost model and the fields below; held for microseconds, never during a run.
        self._changed = threading.Condition(threading.Lock())
        self._busy_until_s = 0.0
        self._ended_s = clock()
        self._lag = Lag()
        self._demand = Demand()
        self._running = 0
        self._failures = 0
        self._closed = False
        self._waking = False
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the engine's thread; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="fathom-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for the engine."""
        return len(self._lanes)

    @property
    def running(self) -> int:
        """Requests that the engine has taken and whose results are not yet delivered."""
        return self._running

    @property
    def failing(self) -> bool:
        """Whether batches keep failing, or the engine's thread has died."""
        lost = self._thread is not None and not self._thread.is_alive()
        return lost or self._failures >= MOST_FAILURES

    def queue_s(
        self,
        depth: int,
        length: int,
        runs: int = 1,
        *,
        now_s: float,
        deadline_s: float | None,
        client: Client = ANYBODY,
    ) -> float:
        """Median seconds until a new request of this depth and so many items to be computed would start."""
        queue_s = self._lanes.work_s
        if queue_s > _little(now_s, deadline_s):
            with self._changed:
                ahead = self._lanes.ahead(self._lanes.urgency_s(now_s, deadline_s), client)
                queue_s = self._cost.queue_s(ahead, self._lanes.batch_limit)
                queue_s *= self._lanes.share(client, self._work_s(depth, length, runs))
        if self._running:
            queue_s += max(0.0, self._busy_until_s - now_s)
        return queue_s

    def p99_s(self, depth: int, length: int, runs: int = 1, *, care: float = 1.0) -> float:
        """Seconds that 99 of 100 answers to one such request take, once it starts; ``runs``: see ``submit``.

        ``care``: see ``CostModel.p99_s``.
        """
        return self._cost.p99_s(depth, self._lanes.bucket(length), runs, care=care) + care * self._lag.value

    def care(self, now_s: float) -> float:
        """How much care there must be that nothing runs in vain, 0 to 1: more where more is asked of the engine."""
        return self._demand.care(now_s)

    def turned_away(self, depth: int, length: int, now_s: float) -> None:
        """Somebody who has asked for this is not let in, for want of time; it is asked for nonetheless."""
        self._demand.add(self._cost.each_s(depth, self._lanes.bucket(length)), now_s)

    def may_probe(self, depth: int, length: int, *, now_s: float, time_s: float) -> bool:
        """Whether a request should run although the estimates say that the time left is too short.

        Where they refuse everything, nothing runs that could correct them.
        """
        possible = self._cost.least_s(depth, self._lanes.bucket(length)) <= time_s
        return possible and now_s - self._ended_s > PROBE_AFTER_S and self._is_idle()

    def submit(
        self,
        work: Work,
        done: Done[Result],
        *,
        depth: int,
        length: int,
        arrival_s: float,
        deadline_s: float | None,
        client: Client = ANYBODY,
        runs: int = 1,
        beside_s: float = 0.0,
        probe: bool = False,
        sure: bool = False,
    ) -> Entry[Job[Work, Result]]:
        """Let work wait for the engine; ``done`` gets its result, unless it is cancelled before.

        ``client``: clients share the engine. ``runs``: as how many requests it counts, by its cost.
        ``beside_s``: seconds that it takes beside its runs, if more than others do.
        ``probe``: run it although it seems to be too late (see ``may_probe``), and believe what it shows. ``sure``: do
        not run it where it may be too late, whatever ``care`` says, since there is another answer for it.
        Raises OverloadError (the queue is full) or UnavailableError (closed). ``done`` may get DeadlineError (it can no
        longer be met) or UnavailableError (closed, or the engine failed), and must not raise.
        """
        # What the engine must keep to, for the answer to be back in time.
        care = 1.0 if sure else self.care(arrival_s)
        by_s = None if deadline_s is None or probe else deadline_s - care * self._lag.value
        job: Job[Work, Result] = Job(work, done, probe)
        entry = Entry(depth, length, arrival_s, by_s, job, client, runs=runs, work_s=beside_s, sure=sure)
        self._push(entry)
        return entry

    def cancel(self, entry: Entry[Job[Work, Result]]) -> None:
        """Take work out of its lane; nothing where it no longer waits."""
        with self._changed:
            entry.payload.gone = True
            entry = entry.payload.entry or entry
            self._lanes.cancel(entry, self._clock())
        self._note_idle()

    async def run(
        self,
        work: Work,
        *,
        depth: int,
        length: int,
        arrival_s: float,
        deadline_s: float | None = None,
        probe: bool = False,
    ) -> tuple[Result, float]:
        """The same as a coroutine: returns what ``done`` gets. Cancelling takes the request out of its lane."""
        found: asyncio.Future[tuple[Result, float]] = asyncio.get_running_loop().create_future()
        settled = settle(found)

        def done(result: Result | RequestError, began_s: float) -> None:
            settled(result if isinstance(result, RequestError) else (result, began_s))

        entry = self.submit(
            work, done, depth=depth, length=length, arrival_s=arrival_s, deadline_s=deadline_s, probe=probe
        )
        try:
            return await found
        except asyncio.CancelledError:
            self.cancel(entry)
            raise

    def _push(self, entry: Entry[Job[Work, Result]]) -> None:
        assert self._loop is not None, "start() comes first"
        with self._changed:
            if self._closed:
                raise UnavailableError(CLOSED)
            if self._lanes.full(entry.client):
                raise self._overload(entry.client)
            entry.work_s += self._work_s(entry.depth, entry.length, entry.runs)
            self._lanes.push(entry)
        self._demand.add(entry.work_s, entry.arrival_s)
        if not self._waking:
            # Once for all that the event loop lets in at a time: so they become one batch.
            self._waking = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        """Let the engine's thread look."""
        self._waking = False
        with self._changed:
            self._changed.notify()

    async def idle(self) -> None:
        """Return when nothing waits and nothing runs: at once where that is so. May be awaited by several."""
        while not self._is_idle():
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Stop after the batch that runs now; what still waits gets UnavailableError. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work_s(self, depth: int, length: int, runs: int) -> float:
        return runs * self._cost.each_s(depth, self._lanes.bucket(length))

    def _overload(self, client: Client) -> OverloadError:
        queue_s = self._cost.queue_s(self._lanes.ahead(math.inf), self._lanes.batch_limit) * self._lanes.share(client)
        text = f"{len(self._lanes)} requests are waiting, which is the most; try again in {queue_s * 1e3:.0f} ms"
        return OverloadError(text, retry_after_s=queue_s)

    def _is_idle(self) -> bool:
        # Locked: between the lanes and the count of what runs, a batch on its way to the engine is in neither.
        with self._changed:
            return not self._running and not len(self._lanes)

    def _note_idle(self) -> None:
        if not self._idle.is_set() and self._is_idle():
            self._idle.set()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            began_s = self._clock()
            if taken.late:
                # Not after the batch: there may be another answer for them, if they hear of it now.
                self._post(replace(taken, batch=[]), [], began_s)
                taken = replace(taken, late=[])
            if taken.batch:
                results = self._run(taken, began_s)
                self._post(*self._finished(taken, results, began_s), began_s)
        self._post_leftovers()

    def _next(self) -> "Taken[Job[Work, Result]] | None":
        """Wait for work; None when closed."""
        with self._changed:
            while not self._closed:
                now_s = self._clock()
                self._cost.care = self.care(now_s)
                taken = self._lanes.take(now_s, self._cost)
                if taken is not None:
                    self._running += len(taken.batch) + len(taken.late)
                    if taken.batch:
                        self._busy_until_s = now_s + self._cost.p50_s(taken.length, taken.by_depth)
                    return taken
                self._changed.wait()
        return None

    def _run(
        self, taken: "Taken[Job[Work, Result]]", began_s: float
    ) -> "Sequence[Result | UnavailableError | Again[Work]]":
        works = [entry.payload.work for entry in taken.batch]
        try:
            results = self._serve([entry.depth for entry in taken.batch], works)
        except Exception:
            # A backend may raise anything; its batch fails, the thread and the server go on.
            self._failures += 1
            depths = ", ".join(map(str, sorted(taken.by_depth)))
            log.exception("the engine failed at depth %s, %d requests", depths, len(taken.batch))
            return [UnavailableError(f"the engine failed at depth {each.depth}; try again") for each in taken.batch]
        self._failures = 0
        now_s = self._clock()
        if self._typical(works):
            probe = any(entry.payload.probe for entry in taken.batch)
            with self._changed:
                self._cost.observe(taken.length, taken.by_depth, now_s - began_s, now_s, probe=probe)
        return results

    def _finished(
        self,
        taken: "Taken[Job[Work, Result]]",
        results: "Sequence[Result | UnavailableError | Again[Work]]",
        began_s: float,
    ) -> "tuple[Taken[Job[Work, Result]], Sequence[Result | UnavailableError]]":
        """What of a batch has a result, and these; what goes on waits for another batch."""
        batch: list[Entry[Job[Work, Result]]] = []
        finished: list[Result | UnavailableError] = []
        for entry, result in zip(taken.batch, results, strict=True):
            if isinstance(result, Again):
                with self._changed:
                    self._running -= 1
                    self._wait_again(entry, result, began_s)
            else:
                batch.append(entry)
                finished.append(result)
        return (taken if len(batch) == len(taken.batch) else replace(taken, batch=batch)), finished

    def _wait_again(self, entry: Entry[Job[Work, Result]], again: "Again[Work]", began_s: float) -> None:
        job, each_s = entry.payload, self._cost.each_s(entry.depth, self._lanes.bucket(entry.length))
        if job.gone:
            return
        job.work, runs = again.part(self._lanes.run_limit(entry.length, each_s))
        job.began_s = job.began_s or began_s
        job.entry = replace(entry, runs=runs, work_s=runs * each_s, share=None)
        self._lanes.push(job.entry)

    def _post(
        self, taken: "Taken[Job[Work, Result]]", results: Sequence[Result | UnavailableError], began_s: float
    ) -> None:
        """Hand a whole batch to the event loop in one call."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, taken, results, began_s, self._clock())
        except RuntimeError:
            # The loop is closed: nobody is left to wait for these.
            log.debug("results of %d requests came after the event loop was closed", len(taken.batch))

    def _post_leftovers(self) -> None:
        with self._changed:
            entries: list[Entry[Job[Work, Result]]] = self._lanes.clear()
            self._running += len(entries)
        if entries:
            closed = [UnavailableError(CLOSED) for _ in entries]
            self._post(Taken(0, entries, []), closed, 0.0)

    def _deliver(
        self,
        taken: "Taken[Job[Work, Result]]",
        results: Sequence[Result | UnavailableError],
        began_s: float,
        ended_s: float,
    ) -> None:
        """In the event loop: tell everyone what became of a batch."""
        with self._changed:
            self._running -= len(taken.batch) + len(taken.late)
        if taken.batch:
            self._ended_s = ended_s
        for entry, result in zip(taken.batch, results, strict=True):
            _tell(entry, result, began_s)
        for entry in taken.late:
            _tell(entry, _too_late(entry, began_s), began_s)
        if taken.batch:
            now_s = self._clock()
            self._lag.observe(now_s - ended_s, now_s, probe=any(entry.payload.probe for entry in taken.batch))
        self._note_idle()


def _little(now_s: float, deadline_s: float | None) -> float:
    """Seconds of waiting work of which it does not matter how much is done first, nor in which batches."""
    return LITTLE_S if deadline_s is None else max(0.0, min(LITTLE_S, LITTLE_SHARE * (deadline_s - now_s)))


def _tell(entry: Entry[Job[Work, Result]], result: Result | RequestError, began_s: float) -> None:
    try:
        entry.payload.done(result, entry.payload.began_s or began_s)
    except Exception:
        log.exception("what became of a request could not be told; those of its batch go on")


def _too_late(entry: Entry[Job[Work, Result]], now_s: float) -> DeadlineError:
    assert entry.deadline_s is not None
    left_s = entry.deadline_s - now_s
    if left_s <= 0:
        return DeadlineError("the deadline passed in the queue; allow more time")
    return DeadlineError(
        f"{left_s * 1e3:.1f} ms left after the queue, not enough for depth {entry.depth}; allow more time"
    )
