"""Who goes next, checked on any sequence of arrivals, cancellations and runs."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.lane import Entry
from fathom.runtime.lanes import LONGEST_RUN_S, NOBODY, ByDepth, Lanes
from fathom.runtime.padding import length_buckets
from fathom.runtime.shares import ANYBODY, Client

PATIENCE_S = 10.0


class FlatCost:
    """Every request takes ``seconds``, whatever its lane; ``more_s`` is what the lanes think that one more takes."""

    def __init__(self, seconds: float = 0.0, more_s: float = 1e-9) -> None:
        self.seconds = seconds
        self.more_s = more_s

    def largest(self, _depth: int, _length: int, time_s: float, *, beside: ByDepth = NOBODY, **_: object) -> int:
        if self.seconds == 0:
            return 1_000_000 if time_s >= 0 else 0
        return max(0, math.floor(time_s / self.seconds + 1e-9) - sum(beside.values()))

    def each_s(self, _depth: int, _length: int) -> float:
        return self.more_s

    def p50_s(self, _length: int, requests: ByDepth) -> float:
        return 1e-6 + self.more_s * sum(requests.values())


def lanes(**changes) -> Lanes[str]:
    given = {"max_queue": 100, "max_batch": 4, "max_batch_tokens": 64, "patience_s": PATIENCE_S}
    return Lanes(buckets=(16, 32, 64), **(given | changes))


def entry(
    name: str = "",
    *,
    depth: int = 4,
    length: int = 10,
    at: float = 0.0,
    deadline: float | None = None,
    work_s: float = 0.0,
):
    return Entry(depth, length, at, deadline, name, work_s=work_s)


def names(entries) -> list[str]:
    return [e.payload for e in entries]


def take(queue: Lanes[str], now: float = 0.0, each_s: float = 0.0, more_s: float = 1e-9) -> tuple[list[str], list[str]]:
    taken = queue.take(now, FlatCost(each_s, more_s))
    return ([], []) if taken is None else (names(taken.batch), names(taken.late))


def test_buckets_double_up_to_the_longest_history() -> None:
    assert length_buckets(200) == (16, 32, 64, 128, 200)
    assert length_buckets(20) == (16, 20)
    assert length_buckets(16) == (16,)
    assert length_buckets(5) == (5,)


def test_nothing_waiting_gives_nothing() -> None:
    assert lanes().take(0.0, FlatCost()) is None


def test_the_lane_with_the_earliest_deadline_goes_first() -> None:
    queue = lanes()
    queue.push(entry("a", depth=4, deadline=5))
    queue.push(entry("b", depth=8, deadline=3))
    queue.push(entry("c", depth=4, deadline=9))
    queue.push(entry("d", depth=8, deadline=4))
    assert take(queue)[0] == ["b", "d"]
    assert take(queue)[0] == ["a", "c"]


def test_without_deadlines_arrival_decides() -> None:
    queue = lanes()
    for i, depth in enumerate((8, 4, 8)):
        queue.push(entry(str(i), depth=depth, at=i))
    assert take(queue)[0] == ["0", "2"]
    assert take(queue)[0] == ["1"]


def test_batches_are_capped_by_requests_and_by_padded_tokens() -> None:
    queue = lanes()
    for i in range(6):
        queue.push(entry(str(i), length=10))
    assert take(queue)[0] == ["0", "1", "2", "3"]
    queue = lanes()
    for i in range(3):
        queue.push(entry(str(i), length=30))
    assert take(queue)[0] == ["0", "1"]
    assert lanes(max_batch_tokens=1).batch_limit(64) == 1


def test_a_batch_is_no_longer_than_others_should_wait_for_but_what_is_longer_alone_runs_alone() -> None:
    queue = lanes(max_batch=32, max_batch_tokens=10_000)
    for name, part in (("a", 2.0), ("b", 0.5), ("c", 0.5), ("d", 0.25)):
        waiting = entry(name)
        waiting.work_s = part * LONGEST_RUN_S
        queue.push(waiting)
    assert [take(queue)[0] for _ in range(3)] == [["a"], ["b", "c"], ["d"]]


def test_a_batch_is_smaller_where_the_machine_has_become_slower_since_its_entries_came() -> None:
    queue = lanes(max_batch=32, max_batch_tokens=10_000)
    for name in "abcde":
        queue.push(entry(name))
    assert take(queue, more_s=LONGEST_RUN_S / 2.5)[0] == ["a", "b"]
    assert take(queue, more_s=2 * LONGEST_RUN_S)[0] == ["c"]
    assert len(queue) == 2


def test_a_full_queue_says_so_and_a_cancelled_entry_makes_room() -> None:
    queue = lanes(max_queue=1)
    first = entry("a")
    queue.push(first)
    assert queue.full
    assert queue.cancel(first)
    assert not queue.cancel(first)
    queue.push(entry("c"))
    assert take(queue)[0] == ["c"]


def test_an_entry_that_can_no_longer_make_it_is_dropped_and_the_next_lane_runs() -> None:
    queue = lanes()
    queue.push(entry("late", depth=4, deadline=1))
    queue.push(entry("fine", depth=8, deadline=9))
    assert take(queue, now=0.5, each_s=1.0) == (["fine"], ["late"])
    assert len(queue) == 0


def test_when_all_are_late_the_batch_is_empty() -> None:
    queue = lanes()
    queue.push(entry("a", deadline=1))
    assert take(queue, now=2) == ([], ["a"])
    assert queue.take(2, FlatCost()) is None


def test_a_batch_is_no_larger_than_its_most_urgent_entry_allows() -> None:
    queue = lanes()
    for i, deadline in enumerate((2.5, 50, 50, 50)):
        queue.push(entry(str(i), deadline=deadline))
    assert take(queue, each_s=1.0)[0] == ["0", "1"]
    assert take(queue, each_s=1.0)[0] == ["2", "3"]


def test_lanes_ahead_are_those_with_something_as_urgent() -> None:
    queue = lanes()
    queue.push(entry("a", depth=4, deadline=5))
    queue.push(entry("b", depth=4, deadline=9))
    queue.push(entry("c", depth=8, length=20, deadline=7))
    assert list(queue.ahead(4)) == []
    assert list(queue.ahead(6)) == [(4, 16, 2)]
    assert sorted(queue.ahead(8)) == [(4, 16, 2), (8, 32, 1)]


def test_cancelled_entries_do_not_pile_up() -> None:
    queue = lanes(max_queue=2)
    queue.push(entry("stays"))
    for _ in range(10_000):
        gone = entry("gone")
        queue.push(gone)
        queue.cancel(gone)
    (lane,) = queue._lanes.values()
    assert sum(len(heap.entries) + len(heap.places) for heap in lane._heaps.values()) < 200
    assert take(queue)[0] == ["stays"]


def test_clear_returns_what_waits() -> None:
    queue = lanes()
    gone = entry("gone")
    queue.push(gone)
    queue.push(entry("a"))
    queue.push(entry("b", depth=8))
    queue.cancel(gone)
    assert names(queue.clear()) == ["a", "b"]
    assert len(queue) == 0
    assert queue.take(0, FlatCost()) is None


MANY = [Client(address, f"{address}:{port}", name) for address in "ab" for port in (1, 2) for name in ("", "x")]
arrivals = st.builds(
    lambda depth, length, slack, client, work_s: ("push", depth, length, slack, client, work_s),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 64),
    st.none() | st.floats(0, 30),
    st.sampled_from(MANY),
    st.floats(0.0001, 0.1),
)
cancels = st.builds(lambda i: ("cancel", i), st.integers(0, 200))
runs = st.builds(lambda each: ("take", each), st.sampled_from([0.0, 0.1, 1.0]))
waits = st.builds(lambda seconds: ("wait", seconds), st.floats(0, 5))


@given(st.lists(arrivals | arrivals | cancels | runs | waits, max_size=80), st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_invariants_hold_for_any_history_of_events(events, several: bool, mixes: bool) -> None:
    queue = lanes(max_queue=20, mixes=mixes)
    now = 0.0
    everything: list[Entry[str]] = []
    waiting: dict[int, Entry[str]] = {}
    for event in events:
        match event:
            case ("wait", seconds):
                now += seconds
            case ("push", depth, length, slack, client, work_s):
                new = Entry(depth, length, now, None if slack is None else now + slack, "", work_s=work_s)
                if several:
                    new.client = client
                full = queue.full(new.client)
                assert full == (len(waiting) >= 20) if new.client == ANYBODY else len(waiting) >= 20 or not full
                assert len(waiting) <= 40 + 2
                if not full:
                    queue.push(new)
                    everything.append(new)
                    waiting[id(new)] = new
            case ("cancel", index) if everything:
                victim = everything[index % len(everything)]
                assert queue.cancel(victim, now) == (waiting.pop(id(victim), None) is not None)
            case ("take", each_s):
                check_take(queue, waiting, now, each_s)
        assert len(queue) == len(waiting)
        assert sum(n for _, _, n in queue.ahead(math.inf)) == len(waiting)
        assert queue._shares.all.work_s == pytest.approx(sum(each.work_s for each in waiting.values()))
        assert 0 <= queue.share(MANY[0] if several else ANYBODY) <= 1


def check_take(queue: Lanes[str], waiting: dict[int, Entry[str]], now: float, each_s: float) -> None:
    cost = FlatCost(each_s)

    def can_make_it(e: Entry[str]) -> bool:
        return e.deadline_s is None or cost.largest(e.depth, e.length, e.deadline_s - now) > 0

    def urgency(e: Entry[str]) -> float:
        return queue.urgency_s(e.arrival_s, e.deadline_s)

    possible = [e for e in waiting.values() if can_make_it(e)]
    taken = queue.take(now, cost)
    if taken is None:
        assert not waiting
        return
    batch, late = taken.batch, taken.late
    # Work-conserving: something that can make it waits, so something runs.
    assert bool(batch) == bool(possible)
    # What comes out was waiting, comes out once, and only what cannot make it is dropped.
    for e in (*batch, *late):
        assert waiting.pop(id(e)) is e
        assert can_make_it(e) == (e in batch)
    if not batch:
        return
    # One bucket, one depth unless they are mixed, within the caps, and small enough for every deadline in it.
    assert {queue.bucket(e.length) for e in batch} == {taken.length}
    assert queue.mixes or len({e.depth for e in batch}) == 1
    assert taken.by_depth == Counter(e.depth for e in batch)
    assert len(batch) <= 4
    assert len(batch) * max(e.length for e in batch) <= 64 or len(batch) == 1
    for e in batch:
        assert e.deadline_s is None or now + len(batch) * each_s <= e.deadline_s + 1e-6
    # Of one client, the most urgent of all that can make it is in the batch; so nothing is passed by for ever.
    clients = {e.client for e in possible}
    if len(clients) == 1:
        assert min(map(urgency, possible)) == urgency(batch[0])
    for client in clients:
        for depth in taken.by_depth:
            own = [urgency(e) for e in batch if e.client == client and e.depth == depth]
            assert own == sorted(own)


@given(st.lists(st.tuples(st.sampled_from([4, 8, 16]), st.floats(0.0, 3.0)), min_size=30, max_size=60))
@settings(max_examples=50, deadline=None)
def test_no_flood_of_deadlines_starves_a_request_beyond_its_patience(flood) -> None:
    queue = lanes(max_queue=1_000, max_batch=1, patience_s=5.0)
    queue.push(entry("patient", depth=12))
    # Two urgent requests arrive for each one that runs, so the queue only grows.
    for now, (depth, slack) in enumerate(flood):
        for _ in range(2):
            queue.push(entry("flood", depth=depth, at=now, deadline=now + slack + 1))
        if "patient" in take(queue, now)[0]:
            # Patience 5, then at most the flood that was more urgent than that.
            assert now <= 5 + 2 * 5
            return
    pytest.fail("it never ran")


def test_what_room_a_batch_has_is_for_other_depths_of_the_same_length() -> None:
    def waiting(mixes: bool) -> Lanes[str]:
        queue = lanes(mixes=mixes, max_batch=5)
        for name, depth, length in (
            ("a", 4, 10),
            ("b", 16, 10),
            ("long", 4, 30),
            ("c", 4, 10),
            ("d", 8, 16),
            ("e", 16, 1),
            ("f", 8, 1),
        ):
            queue.push(entry(name, depth=depth, length=length))
        return queue

    apart, together = waiting(False), waiting(True)
    assert [take(apart)[0] for _ in range(4)] == [["a", "c"], ["b", "e"], ["long"], ["d", "f"]]
    assert [take(together)[0] for _ in range(3)] == [["a", "c", "b", "e"], ["long"], ["d", "f"]]


@pytest.mark.parametrize(("deadlines", "taken"), [((1.0, 9.0), ["a"]), ((3.0, 1.0), ["b"]), ((3.0, 2.0), ["b", "a"])])
def test_nobody_becomes_late_by_who_joins(deadlines: tuple[float, float], taken: list[str]) -> None:
    queue = lanes(mixes=True)
    queue.push(entry("a", depth=4, deadline=deadlines[0]))
    queue.push(entry("b", depth=16, deadline=deadlines[1]))
    assert take(queue, each_s=1.0) == (taken, [])


def test_who_would_be_late_in_company_waits_for_a_batch_of_its_own() -> None:
    queue = lanes(mixes=True)
    queue.push(entry("a", depth=4, deadline=1.5))
    queue.push(entry("b", depth=16))
    queue.push(entry("c", depth=16, deadline=2.0))
    # Two together are late for the one, and with it alone all is well.
    assert take(queue, each_s=1.0) == (["a"], [])
    assert take(queue, each_s=1.0) == (["c", "b"], [])


def test_who_joins_no_more_than_doubles_the_run() -> None:
    queue = lanes(mixes=True, max_batch=40)
    queue.push(entry("base", depth=4))
    for number in range(10):
        queue.push(entry(str(number), depth=16))
    # One takes 1 ms; the fixed part is next to nothing.
    assert take(queue, more_s=1e-3) == (["base", "0"], [])


def test_who_joins_is_who_would_be_next() -> None:
    """So a client's own more urgent request, of another length, is not passed by for ever."""
    flood, other = Client("a", "a"), Client("b", "b")
    queue = lanes(mixes=True, max_queue=1_000)
    for _ in range(100):
        queue.push(replace(entry("flood", depth=16, at=1.0, work_s=1e-3), client=flood))
    queue.push(replace(entry("urgent", depth=4, length=30, work_s=1e-3), client=flood))
    for now in range(2, 10):
        queue.push(replace(entry("other", depth=4, at=now, work_s=1e-3), client=other))
        if "urgent" in take(queue, now)[0]:
            return
    pytest.fail("it never ran")


def test_a_run_for_cached_histories_has_one_depth() -> None:
    queue: Lanes[str] = Lanes(
        buckets=(0, 16), max_queue=9, max_batch=9, max_batch_tokens=99, patience_s=PATIENCE_S, mixes=True
    )
    for name, depth in (("a", 4), ("b", 8), ("c", 4)):
        queue.push(entry(name, depth=depth, length=0))
    assert take(queue) == (["a", "c"], [])


def test_an_entry_of_several_runs_takes_their_place_in_a_batch_and_their_time() -> None:
    queue = lanes(max_batch=8)
    for name, runs, deadline in (("a", 5, 1.0), ("b", 1, 2.0), ("c", 3, 3.0), ("d", 20, 100.0), ("e", 2, 101.0)):
        queue.push(replace(entry(name, deadline=deadline), runs=runs))
    assert list(queue.ahead(1.0)) == [(4, 16, 31)]
    # Alone each of the first would make it, but the third not in company; the first is too late for its five.
    assert take(queue, each_s=0.25) == (["b", "c"], ["a"])
    assert list(queue.ahead(200.0)) == [(4, 16, 22)]
    # More than a batch may hold goes alone.
    assert take(queue) == (["d"], [])
    assert take(queue) == (["e"], [])
