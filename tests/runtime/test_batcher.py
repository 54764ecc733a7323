"""The engine's thread: results come back in batches, and trouble stays with those whom it concerns."""

import asyncio
import math
import threading
from collections.abc import Iterator

import pytest

from fathom.errors import DeadlineError, OverloadError, UnavailableError
from fathom.runtime.batcher import Batcher
from fathom.runtime.cost import DEMAND_S, CostModel, Line
from fathom.runtime.lanes import Lanes

COST_S = 0.010


class Bench:
    """A batcher whose engine doubles numbers, can be held, and whose clock only moves when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        lanes = Lanes(buckets=(16,), max_queue=3, max_batch=8, max_batch_tokens=1_000, patience_s=1.0)
        cost = CostModel({(4, 16): Line(0.0, COST_S)}, tail=0.0)
        self.batcher: Batcher[int, int] = Batcher(lanes, cost, self.serve, clock=lambda: self.now_s)

    def serve(self, _depths: list[int], works: list[int]) -> list[int]:
        self.batches.append(works)
        self.entered.release()
        assert self.free.wait(30)
        if 13 in works:
            raise RuntimeError("bad luck")
        return [2 * work for work in works]

    def ask(self, work: int, deadline_s: float | None = None) -> asyncio.Task[tuple[int, float]]:
        call = self.batcher.run(work, depth=4, length=5, arrival_s=self.now_s, deadline_s=deadline_s)
        return asyncio.create_task(call)

    async def hold(self) -> asyncio.Task[tuple[int, float]]:
        """Start one request and return when the engine is busy with it."""
        self.free.clear()
        task = self.ask(1)
        await asyncio.to_thread(self.entered.acquire)
        return task

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.batcher.waiting != count:
                await asyncio.sleep(0)


@pytest.fixture
async def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.batcher.start()
    yield bench
    bench.free.set()
    bench.batcher.close()


async def test_what_waits_while_the_engine_runs_becomes_one_batch(bench: Bench) -> None:
    first = await bench.hold()
    others = [bench.ask(work) for work in (2, 3)]
    await bench.until_waiting(2)
    bench.now_s += 5
    bench.free.set()
    assert await first == (2, 100.0)
    assert await asyncio.gather(*others) == [(4, 105.0), (6, 105.0)]
    assert bench.batches == [[1], [2, 3]]


async def test_a_full_queue_refuses_at_once_and_recovers(bench: Bench) -> None:
    first = await bench.hold()
    others = [bench.ask(work) for work in (2, 3, 4)]
    await bench.until_waiting(3)
    with pytest.raises(OverloadError, match="3 requests are waiting, which is the most; try again in") as refused:
        await bench.ask(5)
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 0
    bench.free.set()
    await asyncio.gather(first, *others)
    assert await bench.ask(6) == (12, 100.0)


async def test_a_cancelled_request_leaves_its_lane_and_never_runs(bench: Bench) -> None:
    first = await bench.hold()
    gone, stays = bench.ask(2), bench.ask(3)
    await bench.until_waiting(2)
    gone.cancel()
    await bench.until_waiting(1)
    bench.free.set()
    await asyncio.gather(first, stays)
    assert bench.batches == [[1], [3]]
    assert gone.cancelled()


async def test_cancelling_what_already_runs_disturbs_nobody(bench: Bench) -> None:
    first = await bench.hold()
    first.cancel()
    bench.free.set()
    assert await bench.ask(2) == (4, 100.0)
    assert first.cancelled()


async def test_who_can_no_longer_make_it_gets_a_deadline_error_and_the_rest_an_answer(bench: Bench) -> None:
    first = await bench.hold()
    passed = bench.ask(2, deadline_s=bench.now_s + 1)
    hopeless = bench.ask(3, deadline_s=bench.now_s + 2 + COST_S / 2)
    fine = bench.ask(4, deadline_s=bench.now_s + 9)
    await bench.until_waiting(3)
    bench.now_s += 2
    bench.free.set()
    with pytest.raises(DeadlineError, match="passed in the queue"):
        await passed
    with pytest.raises(DeadlineError, match=r"5\.0 ms left after the queue, not enough for depth 4"):
        await hopeless
    assert await fine == (8, 102.0)
    await first
    assert bench.batches == [[1], [4]]


async def test_what_has_another_answer_is_dropped_where_it_may_be_late_and_what_has_none_is_tried(bench: Bench) -> None:
    bench.batcher._cost._tail.value = 1.0
    first, told = await bench.hold(), []
    for work, sure in ((2, True), (3, False)):
        bench.batcher.submit(
            work,
            lambda result, _: told.append(result),
            depth=4,
            length=5,
            arrival_s=bench.now_s,
            deadline_s=bench.now_s + 1.5 * COST_S,
            sure=sure,
        )
    bench.free.set()
    await first
    await bench.batcher.idle()
    assert bench.batches == [[1], [3]]
    assert sorted(map(str, told)) == ["14.8 ms left after the queue, not enough for depth 4; allow more time", "6"]


async def test_a_failing_run_fails_its_batch_only(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnavailableError, match="engine failed at depth 4"):
        await bench.ask(13)
    assert "bad luck" in caplog.text
    assert await bench.ask(2) == (4, 100.0)


async def test_the_more_is_asked_for_the_surer_an_answer_must_be(bench: Bench) -> None:
    assert bench.batcher.care(bench.now_s) == 0
    for _ in range(int(2 * DEMAND_S / COST_S)):
        bench.batcher.turned_away(4, 5, bench.now_s)
    assert bench.batcher.care(bench.now_s) == 1
    bench.now_s += 10 * DEMAND_S
    assert bench.batcher.care(bench.now_s) == 0
    assert await bench.ask(2) == (4, bench.now_s)


async def test_the_queue_counts_what_runs_and_what_goes_first(bench: Bench) -> None:
    def queue_s(left_s: float | None) -> float:
        deadline_s = None if left_s is None else bench.now_s + left_s
        return bench.batcher.queue_s(4, 5, now_s=bench.now_s, deadline_s=deadline_s)

    assert queue_s(None) == 0
    assert bench.batcher.p99_s(4, 5) >= COST_S
    first = await bench.hold()
    others = [bench.ask(2), bench.ask(3)]
    await bench.until_waiting(2)
    assert queue_s(50) == pytest.approx(3 * COST_S, rel=0.1)
    assert queue_s(0.5) == pytest.approx(COST_S, rel=0.1)
    bench.free.set()
    await asyncio.gather(first, *others)


async def test_little_work_all_counts_and_of_much_only_what_goes_first(bench: Bench) -> None:
    first = await bench.hold()
    bench.now_s += 1  # What runs should have ended.
    others = [bench.ask(2), bench.ask(3)]
    await bench.until_waiting(2)
    for left_s, queue_s in ((math.inf, 2 * COST_S), (0.7, 2 * COST_S), (0.5, 0.0), (-1.0, 0.0)):
        by_s = bench.now_s + left_s
        assert bench.batcher.queue_s(4, 5, now_s=bench.now_s, deadline_s=by_s) == pytest.approx(queue_s)
    bench.free.set()
    await asyncio.gather(first, *others)
    assert bench.batcher.queue_s(4, 5, now_s=bench.now_s, deadline_s=bench.now_s - 1) == 0


async def test_idle_returns_when_all_is_answered(bench: Bench) -> None:
    await bench.batcher.idle()
    first = await bench.hold()
    second = bench.ask(2)
    await bench.until_waiting(1)
    drained = asyncio.create_task(bench.batcher.idle())
    await asyncio.sleep(0)
    assert not drained.done()
    bench.free.set()
    await drained
    assert first.done()
    assert second.done()


async def test_cancelling_the_last_one_makes_it_idle(bench: Bench) -> None:
    first = await bench.hold()
    second = bench.ask(2)
    await bench.until_waiting(1)
    drained = asyncio.create_task(bench.batcher.idle())
    bench.free.set()
    second.cancel()
    await drained
    await first


async def test_who_can_no_longer_make_it_hears_of_it_before_the_next_batch_has_run(bench: Bench) -> None:
    told = threading.Event()

    def until_told(depths: list[int], works: list[int]) -> list[int]:
        assert works != [3] or told.wait(30)
        return bench.serve(depths, works)

    bench.batcher._serve = until_told
    first = await bench.hold()
    late, stays = bench.ask(2, deadline_s=bench.now_s + 1), bench.ask(3)
    await bench.until_waiting(2)
    bench.now_s += 0.995
    bench.free.set()
    with pytest.raises(DeadlineError, match="ms left after the queue"):
        await late
    told.set()
    assert await stays == (6, bench.now_s)
    await first


async def test_closing_fails_what_waits_and_what_comes_later(bench: Bench) -> None:
    first = await bench.hold()
    waiting = bench.ask(2)
    await bench.until_waiting(1)
    closing = asyncio.create_task(asyncio.to_thread(bench.batcher.close))
    async with asyncio.timeout(10):
        while not bench.batcher._closed:
            await asyncio.sleep(0)
    bench.free.set()
    await closing
    assert (await first)[0] == 2
    for task in (waiting, bench.ask(3)):
        with pytest.raises(UnavailableError, match="closed"):
            await task
    bench.batcher.close()
    assert bench.batches == [[1]]


async def test_an_idle_engine_may_try_what_the_estimates_refuse_and_they_believe_it(bench: Bench) -> None:
    for _ in range(100):
        # Each takes a second, although ten milliseconds were measured.
        running = await bench.hold()
        bench.now_s += 1
        bench.free.set()
        await running
    time_s = 2 * COST_S
    assert bench.batcher.p99_s(4, 5) > time_s
    assert not bench.batcher.may_probe(4, 5, now_s=bench.now_s, time_s=time_s)
    bench.now_s += 1
    assert bench.batcher.may_probe(4, 5, now_s=bench.now_s, time_s=time_s)
    # No engine was ever so fast.
    assert not bench.batcher.may_probe(4, 5, now_s=bench.now_s, time_s=COST_S / 2)
    work = {"depth": 4, "length": 5, "arrival_s": bench.now_s, "deadline_s": bench.now_s + time_s}
    assert await bench.batcher.run(1, **work, probe=True) == (2, bench.now_s)
    assert bench.batcher.p99_s(4, 5) < time_s
