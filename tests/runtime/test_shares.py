"""Who gets how much of the engine, by address, connection and name; in the order of service, without a clock."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.lane import Entry
from fathom.runtime.lanes import Lanes
from fathom.runtime.shares import FEW, GRAIN_S, Client

LONG_S, SHORT_S = 0.005, 0.0005
ALICE, BOB = Client("1.1.1.1", "1.1.1.1:1"), Client("2.2.2.2", "2.2.2.2:1")


class NoCost:
    """Every batch makes every deadline."""

    def largest(self, _depth: int, _length: int, _time_s: float, **_: object) -> int:
        return 1_000_000

    def each_s(self, _depth: int, _length: int) -> float:
        return 1e-9

    def p50_s(self, _length: int, _requests: object) -> float:
        return 1e-9


class Queue:
    """Lanes whose time is the work that was done, and what was served of whom."""

    def __init__(self, *, max_queue: int = 2_000, max_batch: int = 1, patience_s: float = 1.0) -> None:
        self.lanes: Lanes[str] = Lanes(
            buckets=(16, 200),
            max_queue=max_queue,
            max_batch=max_batch,
            max_batch_tokens=1_000_000,
            patience_s=patience_s,
        )
        self.now_s = 0.0
        self.had_s: Counter[Client] = Counter()

    def ask(
        self, client: Client, count: int = 1, *, work_s: float = LONG_S, left_s: float | None = None
    ) -> list[Entry]:
        entries = []
        for _ in range(count):
            depth, length = (16, 200) if work_s >= LONG_S else (4, 10)
            deadline_s = None if left_s is None else self.now_s + left_s
            entry = Entry(depth, length, self.now_s, deadline_s, client.name, client, work_s=work_s)
            assert not self.lanes.full(client)
            self.lanes.push(entry)
            entries.append(entry)
        return entries

    def run(self) -> list[Entry]:
        taken = self.lanes.take(self.now_s, NoCost())
        if taken is None:
            return []
        assert not taken.late
        for entry in taken.batch:
            self.now_s += entry.work_s
            self.had_s[entry.client] += entry.work_s
        return taken.batch

    def runs_until(self, wanted: Entry) -> int:
        """Batches that are run up to and with the one of this entry."""
        for number in range(1, 10_000):
            if wanted in self.run():
                return number
        raise AssertionError("it never ran")


def names(connection: int, count: int) -> list[Client]:
    return [Client("1.1.1.1", f"1.1.1.1:{connection}", f"name-{number}") for number in range(count)]


@pytest.mark.parametrize("deadline_s", [None, 0.05], ids=["patient", "urgent"])
def test_a_short_request_goes_before_all_but_the_running_batch_of_a_flood(deadline_s: float | None) -> None:
    queue = Queue(max_batch=10)
    queue.ask(ALICE, 300, left_s=deadline_s)
    for _ in range(100):
        # Alice always has 300 long requests outstanding.
        batch = queue.run()
        assert {entry.client for entry in batch} == {ALICE}
        queue.ask(ALICE, len(batch), left_s=deadline_s)
        (short,) = queue.ask(BOB, work_s=SHORT_S)
        assert queue.run() == [short]


def test_a_hundred_names_on_one_connection_get_one_share_together() -> None:
    queue = Queue(max_batch=10)
    many = names(1, 100)
    for name in many:
        queue.ask(name, 3)
    for _ in range(100):
        for entry in queue.run():
            queue.ask(entry.client)
        (short,) = queue.ask(BOB, work_s=SHORT_S)
        assert queue.run() == [short]
    # And among them every name gets the same.
    assert max(queue.had_s[name] for name in many) <= min(queue.had_s[name] for name in many) + 2 * LONG_S


def test_a_fresh_name_for_every_call_gains_nothing() -> None:
    queue = Queue()
    fresh = iter(names(1, 100_000))
    victim = Client("1.1.1.1", "1.1.1.1:2", "steady")
    for _ in range(300):
        queue.ask(next(fresh))
    for _ in range(50):
        queue.ask(victim)
    for _ in range(80):
        queue.run()
        queue.ask(next(fresh))
    assert 35 <= queue.had_s[victim] / LONG_S <= 45


def test_a_hundred_connections_of_one_host_get_one_share_together() -> None:
    queue = Queue()
    for number in range(100):
        queue.ask(Client("1.1.1.1", f"1.1.1.1:{number}"), 3)
    queue.ask(BOB, 100)
    for _ in range(100):
        queue.run()
    assert queue.had_s[BOB] / LONG_S == pytest.approx(50, abs=3)


@pytest.mark.parametrize("level", Client._fields)
def test_a_short_request_does_not_wait_for_a_long_one_of_each_of_many(level: str) -> None:
    queue = Queue()
    for number in range(100):
        queue.ask(ALICE._replace(**{level: str(number)}), 3)
    victim = ALICE._replace(**{level: "victim"})
    for _ in range(20):
        for _ in range(50):
            queue.ask(queue.run()[0].client)
        (short,) = queue.ask(victim, work_s=SHORT_S)
        # And that is expected: of 300 others, few.
        assert queue.lanes.share(victim, SHORT_S) <= 25 / 300
        number = queue.runs_until(short)
        assert number <= 5
        queue.ask(ALICE._replace(**{level: "0"}), number - 1)


def test_behind_a_proxy_names_share_among_themselves() -> None:
    queue = Queue()
    loud, quiet = names(1, 2)
    queue.ask(loud, 300)
    queue.run()
    (short,) = queue.ask(quiet, work_s=SHORT_S)
    assert queue.run() == [short]


def test_one_client_alone_is_served_by_urgency_only() -> None:
    queue = Queue()
    late = queue.ask(ALICE, 50, left_s=0.9)
    soon = queue.ask(ALICE, 50, work_s=SHORT_S, left_s=0.5)
    assert [queue.run()[0] for _ in range(100)] == soon + late


def test_between_clients_that_have_had_as_much_urgency_decides() -> None:
    queue = Queue()
    clients = [Client(f"1.1.1.{number}", f"1.1.1.{number}:1") for number in range(50)]
    entries = [queue.ask(client, left_s=1 - number / 100)[0] for number, client in enumerate(clients)]
    assert [queue.run()[0] for _ in range(50)] == entries[::-1]


def test_who_asks_and_cancels_owes_for_it_until_nobody_else_waits_or_for_a_moment() -> None:
    queue = Queue(patience_s=0.1)
    queue.ask(BOB, 1_000, work_s=SHORT_S)
    for entry in queue.ask(ALICE, 300):
        assert queue.lanes.cancel(entry, 0.0)
    (entry,) = queue.ask(ALICE)
    assert 0.1 / SHORT_S <= queue.runs_until(entry) <= 0.2 / SHORT_S
    while queue.run():
        pass
    for entry in queue.ask(ALICE, 300):
        assert queue.lanes.cancel(entry, 0.0)
    # Nobody waited, so nobody was kept from anything.
    (entry, _) = queue.ask(ALICE) + queue.ask(BOB)
    assert queue.run() == [entry]


def test_a_request_whose_deadline_has_passed_is_cancelled_for_nothing() -> None:
    queue = Queue()
    queue.ask(BOB, 10, work_s=SHORT_S)
    for entry in queue.ask(ALICE, 300, left_s=0.01):
        assert queue.lanes.cancel(entry, 0.02)
    (entry,) = queue.ask(ALICE, work_s=SHORT_S, left_s=0.01)
    assert queue.run() == [entry]


def test_a_full_queue_has_room_for_who_lacks_its_part_of_the_work() -> None:
    queue = Queue(max_queue=10)
    lanes = queue.lanes
    queue.ask(ALICE, 6, work_s=SHORT_S)
    queue.ask(BOB, 4)
    # Bob has fewer requests and more work.
    assert lanes.full(BOB)
    assert lanes.full(ALICE)
    carol = Client("3.3.3.3", "3.3.3.3:1")
    assert not lanes.full(carol)
    queue.ask(carol, 3, work_s=SHORT_S)
    assert lanes.full(carol)


def test_names_get_room_from_each_other_and_not_from_other_addresses() -> None:
    queue = Queue(max_queue=100)
    queue.ask(names(1, 1)[0], 100)
    asked = 0
    for name in names(1, 1_000)[1:]:
        if not queue.lanes.full(name):
            queue.ask(name)
            asked += 1
    assert asked == 99
    assert len(queue.lanes) < 200
    queue.ask(BOB, 1)
    # Twice the most; from then on one for every address.
    queue.ask(names(1, 1)[0] if not queue.lanes.full(names(1, 1)[0]) else Client("4.4.4.4", "4.4.4.4:1"))
    assert not queue.lanes.full(Client("5.5.5.5", "5.5.5.5:1"))


def test_what_is_remembered_of_clients_is_bounded() -> None:
    queue = Queue()
    queue.ask(BOB)
    for number in range(20 * FEW):
        queue.ask(Client("1.1.1.1", f"1.1.1.1:{number % 7}", str(number)), work_s=SHORT_S)
        while len(queue.lanes) > 10:
            queue.run()
    assert len(queue.lanes._shares._known) <= 3 * FEW
    heaps = [heap for lane in queue.lanes._lanes.values() for heap in lane._heaps.values()]
    assert len(heaps) < 500
    assert sum(len(heap.entries) + len(heap.places) for heap in heaps) < 1_000


TREE = [Client(address, f"{address}:{port}", name) for address in "abc" for port in (1, 2) for name in "xy"]
MOST_WORK_S, LARGEST_BATCH = 0.02, 3
asks = st.tuples(st.sampled_from(TREE), st.integers(1, 5), st.floats(0.0001, MOST_WORK_S), st.none() | st.floats(0, 2))
runs = st.integers(1, 10)


@given(st.lists(asks | runs, min_size=10, max_size=60))
@settings(max_examples=60, deadline=None)
def test_siblings_that_always_have_something_waiting_get_the_same_within_a_bound(events) -> None:
    queue = Queue(max_batch=LARGEST_BATCH)
    waiting: Counter[tuple[str, ...]] = Counter()
    had_s: Counter[tuple[str, ...]] = Counter()
    # What two siblings had when both began to wait, and have not stopped since.
    since: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    bound_s = 2 * (2 * GRAIN_S + LARGEST_BATCH * MOST_WORK_S)

    def note() -> None:
        nodes = sorted({client[:level] for client in TREE for level in (1, 2, 3)})
        for one, other in combinations(nodes, 2):
            if one[:-1] == other[:-1] and len(one) == len(other):
                if not (waiting[one] and waiting[other]):
                    since.pop((one, other), None)
                    continue
                lead_s = had_s[one] - had_s[other]
                assert abs(lead_s - since.setdefault((one, other), lead_s)) <= bound_s

    for event in events:
        if isinstance(event, int):
            for _ in range(event):
                for entry in queue.run():
                    for level in (1, 2, 3):
                        waiting[entry.client[:level]] -= 1
                        had_s[entry.client[:level]] += entry.work_s
                note()
        else:
            client, count, work_s, left_s = event
            queue.ask(client, count, work_s=work_s, left_s=left_s)
            for level in (1, 2, 3):
                waiting[client[:level]] += count
            note()


@given(st.floats(0.001, 0.02), st.floats(0.001, 0.02), st.integers(1, 20), st.sampled_from(Client._fields))
@settings(max_examples=50, deadline=None)
def test_nobody_starves_however_many_newcomers_there_are(long_s: float, short_s: float, others: int, new: str) -> None:
    queue = Queue()
    steady = TREE[0]
    number = 0
    most_runs = (long_s + 3 * GRAIN_S) / short_s * (others + 2) + others
    for _ in range(3):
        (entry,) = queue.ask(steady, work_s=long_s)
        for _ in range(int(most_runs) + 1):
            while len(queue.lanes) <= others:
                number += 1
                # None of them has had anything, and all are in a greater hurry.
                queue.ask(steady._replace(**{new: str(number)}), work_s=short_s, left_s=0.001)
            if entry in queue.run():
                break
        assert not entry.waiting
