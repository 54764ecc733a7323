"""Stores of histories: one contract for all of them, and what each promises alone. Redis is a real server."""

import asyncio
import gc
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from redis_server import redis_at

from fathom.client import AsyncClient
from fathom.client import Event as ClientEvent
from fathom.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    UnavailableError,
)
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving import sqlite_file
from fathom.serving.history.contract import Appended, HistoryStore, Pair, Retention, StoredEvent, digest_of
from fathom.serving.history.memory import MemoryHistory
from fathom.serving.history.open import open_history
from fathom.serving.history.sqlite import SqliteHistory

DAY = 86_400
KINDS = ("memory", "sqlite", "redis")
OpenStore = Callable[..., HistoryStore]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_at(tmp_path_factory.mktemp("redis") / "socket") as url:
        yield url


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """A function that opens a store of this kind, the same one each time; what it has opened is closed at the end."""
    stores: list[HistoryStore] = []
    kind = request.param
    if kind == "redis":
        import redis

        setting = request.getfixturevalue("redis_url")
        redis.Redis.from_url(setting).flushall()
    else:
        setting = {"memory": "memory", "sqlite": f"sqlite:{tmp_path / 'history.db'}"}[kind]

    def open_store(**retention: Any) -> HistoryStore:
        if kind == "memory" and stores and not retention:
            return stores[0]
        store = open_history(setting, Retention(**retention))
        assert store is not None
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


async def added(store: HistoryStore, user_id: str, some: list[StoredEvent]) -> int:
    """How many of the events are in the history afterwards; every one is counted exactly once."""
    done = await store.append(user_id, some)
    assert sum(done) == len(some)
    return done.added


def events(*times: int, first: int = 0) -> list[StoredEvent]:
    return [StoredEvent(f"e{number}", f"item-{number}", at) for number, at in enumerate(times, first)]


async def test_a_history_is_ordered_by_time_then_by_arrival(opened: OpenStore) -> None:
    store = opened()
    assert await store.read("anna") == []
    late, early, same, last = events(30, 10, 30, 40)
    assert await added(store, "anna", [late, early]) == 2
    assert await added(store, "anna", [last]) == 1
    assert await added(store, "anna", [same]) == 1
    assert await store.read("anna") == [early, late, same, last]
    assert await store.read("ann") == []


async def test_an_event_is_added_once_however_often_it_is_sent(opened: OpenStore) -> None:
    store = opened()
    one, two = events(10, 20)
    assert await added(store, "anna", [one, one]) == 1
    assert await added(store, "anna", [one, two]) == 1
    assert await added(store, "anna", []) == 0
    assert await added(store, "anna", [StoredEvent("e0", "another", 99)]) == 0
    assert await added(store, "berta", [one]) == 1
    assert await store.read("anna") == [one, two]


async def test_only_the_newest_events_are_kept(opened: OpenStore) -> None:
    store = opened(max_events=3)
    assert await added(store, "anna", events(50, 10, 40, 20, 30)) == 3
    assert [event.timestamp for event in await store.read("anna")] == [30, 40, 50]
    assert await added(store, "anna", events(5, 45, first=5)) == 1
    assert [event.timestamp for event in await store.read("anna")] == [40, 45, 50]
    assert await store.delete("anna") == 3


async def test_what_is_older_than_the_retention_is_neither_used_nor_kept(opened: OpenStore) -> None:
    now = int(time.time())
    store = opened(max_age_days=7)
    recent = StoredEvent("recent", "item", now - 6 * DAY)
    await store.append("anna", [StoredEvent("old", "item", now - 8 * DAY), recent])
    assert await store.read("anna") == [recent]
    await store.append("berta", [StoredEvent("old", "item", now - 8 * DAY)])
    assert await store.read("berta") == []
    assert await store.delete("berta") == 0


async def test_a_deleted_user_is_as_if_never_known(opened: OpenStore) -> None:
    store = opened()
    await store.append("anna", events(10, 20))
    await store.append("berta", events(10))
    assert await store.delete("anna") == 2
    assert await store.delete("anna") == 0
    assert await store.read("anna") == []
    assert await store.read("berta") == events(10)
    assert await added(store, "berta", events(10, 20)) == 1


async def test_ids_may_be_any_text(opened: OpenStore) -> None:
    store = opened()
    for number, text in enumerate(("a:b}{", "Übergröße 🐟", "' OR 1=1 --", 'quo"te\\', "new\nline", "nul\0byte")):
        event = StoredEvent(text, text, number)
        assert await added(store, text, [event, event]) == 1
        assert await store.read(text) == [event]
        assert await store.delete(text) == 1


async def test_an_event_keeps_its_type(opened: OpenStore) -> None:
    store = opened(max_events=3)
    bought = StoredEvent("e0", "item", 10, "purchase")
    viewed = StoredEvent("e1", "item", 20, "Ansicht 🐟")
    untyped = StoredEvent("e2", "item", 30)
    assert await added(store, "anna", [bought, viewed, untyped]) == 3
    assert await added(store, "anna", [StoredEvent("e0", "item", 10, "view")]) == 0
    assert await store.read("anna") == [bought, viewed, untyped]
    # Those that are dropped are forgotten, with a type and without.
    assert await added(store, "anna", events(40, 50, 60, first=3)) == 3
    assert await store.delete("anna") == 3


async def test_what_two_open_stores_write_both_read(opened: OpenStore) -> None:
    one, two = opened(), opened()
    both = events(10, 20)
    await asyncio.gather(*(store.append("anna", both) for store in (one, two) for _ in range(5)))
    assert await one.read("anna") == await two.read("anna") == both


class Clock:
    """Seconds since 1970 as the test says, from now on: Redis lets keys expire by a clock of its own."""

    def __init__(self) -> None:
        self.now = int(time.time())

    def __call__(self) -> float:
        return self.now


async def test_what_has_grown_too_old_is_swept_also_of_users_who_never_come_again(opened: OpenStore) -> None:
    clock = Clock()
    store = opened(max_age_days=7, clock=clock)
    for user in range(5):
        at = [clock.now - 6 * DAY - user, clock.now - 5 * DAY, clock.now]
        assert await added(store, f"user-{user}", events(*at)) == 3
    assert await store.sweep() == 0
    clock.now += 2 * DAY
    assert {len(await store.read(f"user-{user}")) for user in range(5)} == {2}
    assert await store.sweep() == 5
    assert await store.sweep() == 0
    assert await store.delete("user-0") == 2
    clock.now += 7 * DAY
    assert await store.sweep() == 8
    assert await store.delete("user-1") == 0


async def test_times_too_far_ahead_are_refused_with_the_event_and_nothing_is_kept(opened: OpenStore) -> None:
    clock = Clock()
    store = opened(clock=clock)
    good, ahead = StoredEvent("good", "item", clock.now + DAY), StoredEvent("ahead", "item", clock.now + DAY + 1)
    with pytest.raises(InvalidRequestError, match=f"event 'ahead' is dated {ahead.timestamp}, more than 86400 s ahead"):
        await store.append("anna", [good, ahead])
    assert await store.read("anna") == []
    assert await added(store, "anna", [good]) == 1
    clock.now += 1
    assert await added(store, "anna", [ahead]) == 1


async def test_stored_events_of_the_far_future_block_nobody(opened: OpenStore) -> None:
    clock = Clock()
    now = clock.now
    store = opened(max_events=3, clock=clock)
    clock.now = 253_402_300_000
    assert await added(store, "anna", events(*range(clock.now - 3, clock.now))) == 3
    clock.now = now
    assert await store.read("anna") == []
    real = events(now - 2, now - 1, now, first=10)
    for number, event in enumerate(real, 1):
        assert await added(store, "anna", [event]) == 1
        assert await store.read("anna") == real[:number]
    # An id that only such an event has is free.
    await store.delete("berta")
    clock.now = 253_402_300_000
    assert await added(store, "berta", [StoredEvent("e", "item", clock.now)]) == 1
    clock.now = now
    assert await added(store, "berta", [StoredEvent("e", "item", now + 1)]) == 1
    assert len(await store.read("berta")) == 1


async def test_late_retries_do_not_bring_a_deleted_user_back(opened: OpenStore) -> None:
    clock = Clock()
    store = opened(tombstone_days=2, clock=clock)
    # The newest is ahead of the server's clock, as a client's clock may be.
    first = events(clock.now - 10, clock.now - 5, clock.now + 60)
    assert await added(store, "anna", first) == 3
    assert await store.delete("anna") == 3
    assert await store.delete("never-seen") == 0
    clock.now += DAY
    late = await store.append("anna", first)
    assert (late.added, late.before_deletion) == (0, 3)
    assert (await store.append("never-seen", first[:2])).before_deletion == 2
    assert await store.read("anna") == await store.read("never-seen") == []
    new = StoredEvent("new", "item", clock.now)
    mixed = await store.append("anna", [*first, new, new])
    assert (mixed.added, mixed.known, mixed.before_deletion) == (1, 1, 3)
    assert await store.read("anna") == [new]
    # Deleted again, both deletions hold; for as long as tombstones live.
    assert await store.delete("anna") == 1
    assert (await store.append("anna", [*first, new])).before_deletion == 4
    clock.now += 2 * DAY
    await store.sweep()
    assert await added(store, "anna", first) == 3


async def pairs_of(store: HistoryStore, bundle: str, since: int = 0) -> dict[str, float]:
    found = await store.counted(bundle, since)
    changes = [each.change for each in found]
    assert changes == sorted({change for change in changes if change > since})
    return {f"{each.source}{each.target}": each.total for each in found}


async def test_pairs_of_items_are_added_up_and_say_what_has_changed_since(opened: OpenStore) -> None:
    one, two = opened(), opened()
    assert await pairs_of(one, "shop") == {}
    await one.count("shop", {("a", "ü\n'\""): 1.0, ("a", "c"): 0.25})
    await two.count("films", {("a", "c"): 7.0})
    assert await pairs_of(two, "shop") == {"aü\n'\"": 1.0, "ac": 0.25}
    before = max(each.change for each in await one.counted("shop", 0))
    await two.count("shop", {("c", "a"): 0.5, ("a", "c"): 0.5})
    await one.count("shop", {})
    assert await pairs_of(one, "shop", before) == {"ca": 0.5, "ac": 0.75}
    assert await pairs_of(two, "films") == {"ac": 7.0}
    await one.append("anna", events(10))
    assert await one.delete("anna") == 1
    assert len(await pairs_of(one, "shop")) == 3


async def test_many_pairs_come_in_parts(opened: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        monkeypatch.setattr(f"fathom.serving.history.{kind}.PAIRS_AT_ONCE", 3)
    store = opened()
    pairs = {("a", f"{number}"): 1.0 for number in range(8)}
    await store.count("shop", pairs)
    found: list[Pair] = []
    while part := await store.counted("shop", found[-1].change if found else 0):
        assert len(part) <= 3
        found += part
    assert [(each.source, each.target) for each in found] == list(pairs)


async def test_pairs_that_no_event_has_changed_for_long_are_swept(opened: OpenStore) -> None:
    clock = Clock()
    store = opened(max_age_days=7, clock=clock)
    await store.count("shop", {("a", "b"): 1.0, ("a", "c"): 1.0})
    clock.now += 5 * DAY
    await store.count("shop", {("a", "c"): 1.0})
    clock.now += 3 * DAY
    assert await store.sweep() == 0
    assert await pairs_of(store, "shop") == {"ac": 2.0}
    last = (await store.counted("shop", 0))[-1].change
    clock.now += 10 * DAY
    await store.sweep()
    assert await pairs_of(store, "shop") == {}
    await store.count("shop", {("a", "c"): 1.0})
    assert await pairs_of(store, "shop", last) == {"ac": 1.0}


class Rules:
    """The rules of history.py in their simplest form."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.users: dict[str, list[StoredEvent]] = {}
        self.deleted: dict[str, tuple[int, int]] = {}

    def append(self, user: str, sent: list[StoredEvent]) -> Appended:
        known, done = self.users.setdefault(user, []), Counter[str]()
        at, last = self.deleted.get(user, (0, -1))
        last = last if self.retention.now < at + self.retention.tombstone_s else -1
        new = []
        for event in sent:
            if event.timestamp <= last:
                done["before_deletion"] += 1
            elif event.timestamp < self.retention.oldest:
                done["too_old"] += 1
            elif event.event_id in {each.event_id for each in known + new}:
                done["known"] += 1
            else:
                new.append(event)
        self.users[user] = sorted(known + new, key=lambda event: event.timestamp)[-self.retention.max_events :]
        done["added"] = sum(event in self.users[user] for event in new)
        done["too_old"] += len(new) - done["added"]
        return Appended(**done)

    def delete(self, user: str) -> int:
        events, now = self.users.pop(user, []), self.retention.now
        last = max(now, self.deleted.get(user, (0, 0))[1], *(event.timestamp for event in events), 0)
        self.deleted[user] = now, last
        return len(events)

    def sweep(self) -> int:
        before = sum(map(len, self.users.values()))
        oldest = self.retention.oldest
        self.users = {u: [each for each in known if each.timestamp >= oldest] for u, known in self.users.items()}
        self.deleted = {
            user: (at, last)
            for user, (at, last) in self.deleted.items()
            if self.retention.now < at + self.retention.tombstone_s
        }
        return before - sum(map(len, self.users.values()))


async def test_random_appends_deletions_and_days_agree_with_the_rules(opened: OpenStore) -> None:
    rng, clock = random.Random(0), Clock()
    settings: dict[str, Any] = {"max_events": 6, "max_age_days": 5, "tombstone_days": 2, "clock": clock}
    store, rules = opened(**settings), Rules(Retention(**settings))
    seen: Counter[str] = Counter()
    for number in range(400):
        user, dice = rng.choice("abc"), rng.random()
        if dice < 0.06:
            assert await store.delete(user) == rules.delete(user)
        elif dice < 0.16:
            clock.now += rng.randrange(DAY)
            assert await store.sweep() == rules.sweep()
        else:
            sent = [
                StoredEvent(
                    f"e{rng.randrange(number + 5)}", f"i{rng.randrange(5)}", clock.now + rng.randrange(-7, 2) * DAY // 2
                )
                for _ in range(rng.randrange(4))
            ]
            done = await store.append(user, sent)
            assert done == rules.append(user, sent)
            seen.update(done._asdict())
        assert await store.read(user) == rules.users.get(user, [])
    assert min(seen[each] for each in Appended._fields) > 10, seen


async def test_of_a_deleted_user_no_byte_is_left_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    marks = [b"anna-the-user", b"the-secret-event", b"the-secret-item"]

    def found() -> set[bytes]:
        everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        return {mark for mark in marks if mark in everything}

    store = open_history(f"sqlite:{path}", Retention())
    assert store is not None
    secret = [StoredEvent(f"the-secret-event-{i}", f"the-secret-item-{i}", i) for i in range(500)]
    await asyncio.gather(*(store.append(f"other-{i}", events(10, 20)) for i in range(200)))
    await asyncio.gather(store.append("anna-the-user", secret), store.append("other", events(10)))
    assert found() == set(marks)
    assert await store.delete("anna-the-user") == 500
    assert found() == set()
    await store.close()
    assert found() == set()


async def test_many_appends_share_their_way_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    store = open_history(f"sqlite:{path}", Retention())
    assert store is not None
    appends = [asyncio.ensure_future(store.append(f"user-{i}", events(10, 20))) for i in range(500)]
    appends[7].cancel()
    done = await asyncio.gather(*appends, return_exceptions=True)
    assert [each for each in done if each != Appended(2)] == [done[7]]
    await store.close()
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(DISTINCT user) FROM events").fetchone()[0] >= 499


APPENDER = """
import asyncio, sys
from fathom.serving.history.contract import StoredEvent, Retention
from fathom.serving.history.open import open_history

async def main():
    store = open_history("sqlite:" + sys.argv[1], Retention(max_events=10_000))
    async def append(number):
        await store.append(f"user-{number % 7}", [StoredEvent(f"e{number}", "item", number)])
        print(number, flush=True)
    for first in range(0, 10_000, 50):
        await asyncio.gather(*(append(first + each) for each in range(50)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 400, 3_000])
async def test_kill_9_loses_no_acknowledged_event(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "history.db"
    with subprocess.Popen([sys.executable, "-c", APPENDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        promised = {int(next(process.stdout)) for _ in range(acknowledged)}
        process.send_signal(signal.SIGKILL)
        # A line that the kill has cut short promises nothing.
        promised |= {int(line) for line in process.stdout if line.endswith("\n")}
    assert len(promised) < 10_000
    store = open_history(f"sqlite:{path}", Retention(max_events=10_000))
    assert store is not None
    kept = {event.timestamp for user in range(7) for event in await store.read(f"user-{user}")}
    await store.close()
    assert promised <= kept


@contextmanager
def nothing_may_grow(path: Path) -> Iterator[None]:
    """No file may become longer than the store's log is, as on a full disk: a real limit of this process."""
    longest = path.with_name(path.name + "-wal").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_named_and_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "history.db"
    store = open_history(f"sqlite:{path}", Retention())
    assert store is not None
    await store.append("anna", events(10, 20))
    await store.append("berta", events(10))
    with nothing_may_grow(path):
        for call in (store.append("anna", events(30, first=5)), store.delete("anna"), store.delete("anna")):
            with pytest.raises(OverloadError, match="the history store is full; free some space"):
                await call
        assert await store.read("anna") == events(10, 20)
    assert len(caplog.records) == 1
    assert f"it is full: {path}: " in caplog.text
    assert await store.append("anna", events(30, first=5)) == Appended(1)
    assert await store.delete("anna") == 3
    assert await store.read("berta") == events(10)
    await store.close()


async def test_a_transaction_that_sqlite_has_ended_itself_is_not_ended_again(tmp_path: Path) -> None:
    store = SqliteHistory(tmp_path / "history.db", Retention(max_events=10_000))
    (pages,) = store._write.execute("PRAGMA page_count").fetchone()
    store._write.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = events(*range(10_000))
    with pytest.raises(OverloadError, match="the history store is full"):
        await store.append("anna", many)
    store._write.execute("PRAGMA max_page_count = 1000000")
    assert await store.append("anna", many) == Appended(10_000)
    await store.close()


async def test_a_file_of_an_older_version_is_read_and_its_far_future_blocks_nobody(tmp_path: Path) -> None:
    path, now = tmp_path / "history.db", int(time.time())
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE events (arrival INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, event TEXT NOT NULL,"
            " item TEXT NOT NULL, timestamp INTEGER NOT NULL, UNIQUE (user, event))"
        )
        rows = [("anna", f"far-{i}", "item", 253_402_300_000 + i % 700) for i in range(1_000)]
        rows += [
            ("berta", "e0", "item-0", now - 9 * DAY),
            ("berta", "e1", b"\xff", now),
            ("berta", "e2", "item-2", now),
        ]
        old.executemany("INSERT INTO events (user, event, item, timestamp) VALUES (?, ?, ?, ?)", rows)
    old.close()
    store = open_history(f"sqlite:{path}", Retention(max_age_days=7))
    assert store is not None
    assert await store.read("anna") == []
    typed = [StoredEvent("e0", "item-0", now, "view")]
    assert await store.append("anna", typed) == Appended(1)
    assert await store.read("anna") == typed
    assert await store.read("berta") == [StoredEvent("e2", "item-2", now)]
    assert await store.sweep() == 1
    assert await store.delete("anna") == 1_000
    await store.close()


async def test_many_processes_may_open_a_file_of_an_older_version_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE events (arrival INTEGER PRIMARY KEY, user, event, item, timestamp)")
        old.execute("INSERT INTO events VALUES (1, 'anna', 'e0', 'item-0', 10)")
        old.commit()
    stores = await asyncio.gather(
        *(asyncio.to_thread(SqliteHistory, path, Retention(max_events=number + 1)) for number in range(8))
    )
    for store in stores:
        assert await store.read("anna") == events(10)
        await store.close()


async def test_a_file_that_another_process_reads_just_now_is_opened_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waited = tmp_path / "history.db", []
    with closing(sqlite3.connect(path)) as reading:
        reading.execute("CREATE TABLE events (arrival INTEGER PRIMARY KEY, user, event, item, timestamp)")
        reading.commit()
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM events").fetchall()
        monkeypatch.setattr(sqlite_file.time, "sleep", lambda seconds: (waited.append(seconds), reading.rollback()))
        store = SqliteHistory(path, Retention())
        await store.close()
    assert waited


def _unlink(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _replace(path: Path) -> None:
    with sqlite3.connect(path.with_name("other.db")) as other:
        other.execute("CREATE TABLE events (user, event, item, timestamp, arrival)")
    other.close()
    path.with_name("other.db").replace(path)


def _unlink_log(path: Path) -> None:
    path.with_name("history.db-wal").unlink()


@pytest.mark.parametrize("lose", [_unlink, _empty, _replace, _unlink_log])
async def test_a_file_that_is_lost_while_it_is_open_is_noticed(
    lose: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    store = open_history(f"sqlite:{path}", Retention())
    assert store is not None
    await store.append("anna", events(10))
    lose(path)
    for call in (store.read("anna"), store.append("anna", events(20)), store.delete("anna"), store.sweep()):
        with pytest.raises(UnavailableError, match="the history store cannot be reached; send item_ids"):
            await call
    assert [f"{path} was deleted, replaced or emptied while" in line.getMessage() for line in caplog.records] == [True]
    await store.close()


async def test_an_append_that_fails_unexpectedly_leaves_nobody_waiting(tmp_path: Path) -> None:
    store = SqliteHistory(tmp_path / "history.db", Retention(max_age_days=10**15))
    for _ in range(2):
        with pytest.raises(OverflowError):
            await asyncio.wait_for(store.append("anna", events(int(time.time()))), 10)
    await store.close()


async def test_what_others_write_into_the_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "history.db", int(time.time())
    store = SqliteHistory(path, Retention())
    await store.append("anna", events(now))
    foreign = ("x'00', 'i', 5, ''", "cast(x'fe' AS TEXT), 'i', 5, ''", "'a', cast(x'ff' AS TEXT), 5, ''")
    foreign += ("'b', 'i', 5.5, ''", "'c', 'i', 5, x'00'")
    with sqlite3.connect(path) as other:
        for values in foreign:
            other.execute(f"INSERT INTO events (user, event, item, timestamp, type) VALUES ('anna', {values})")
    other.close()
    assert await store.read("anna") == events(now)
    assert len(caplog.records) == 1
    assert await store.delete("anna") == 1 + len(foreign)
    await store.close()


async def test_a_deletion_that_must_wait_for_a_reader_is_unavailable_then_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.serving.sqlite_file.BUSY_MS", 10)
    path = tmp_path / "history.db"
    store = SqliteHistory(path, Retention())
    await store.append("anna", events(10))
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
    with pytest.raises(UnavailableError, match="the history store cannot be reached"):
        await store.delete("anna")
    reader.close()
    await store.delete("anna")
    assert not any(b"anna" in each.read_bytes() for each in tmp_path.iterdir())
    await store.close()


async def test_appends_get_their_turn_while_much_is_swept(tmp_path: Path) -> None:
    path, now = tmp_path / "history.db", int(time.time())
    keeps_all = SqliteHistory(path, Retention(max_events=10_000))
    await asyncio.gather(*(keeps_all.append(f"user-{i}", events(*[now - 9 * DAY] * 500)) for i in range(20)))
    await keeps_all.close()
    store = SqliteHistory(path, Retention(max_age_days=7))
    sweeping = asyncio.create_task(store.sweep())
    await asyncio.sleep(0)
    assert await store.append("anna", events(now)) == Appended(1)
    assert not sweeping.done()
    assert await sweeping == 10_000
    assert b"item-499" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    await store.close()


async def test_memory_is_bounded_and_the_least_recently_seen_go_first(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryHistory(Retention(memory_mb=16))
    tracemalloc.start()
    try:
        for user in range(4_000):
            some = [StoredEvent(f"event-{user}-{i}", f"item-{user}-{i}", 1_700_000_000 + i) for i in range(20)]
            assert await added(store, f"user-{user}", some) == 20
            assert len(await store.read("user-0")) == 20
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.nbytes <= 16 * 2**20
    assert used <= 1.1 * store.nbytes
    assert store.evicted == 4_000 - len(store) > 1_000
    assert await store.read("user-1") == []
    assert len(await store.read("user-3999")) == 20
    assert [record.getMessage()[:33] for record in caplog.records] == ["histories take 16 MB of memory, the"[:33]]
    # Deletions take room too.
    for user in range(50_000):
        await store.delete(f"nobody-{user}")
    assert store.nbytes <= 16 * 2**20
    assert store._users_nbytes == sum(each.nbytes for each in store._users.values())


async def test_what_others_write_into_redis_costs_one_line_in_the_log(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    import redis

    other = redis.Redis.from_url(redis_url)
    other.flushall()
    store = open_history(redis_url, Retention(max_age_days=7))
    assert store is not None
    now = int(time.time())
    assert await added(store, "anna", events(now)) == 1
    members = "fathom:history:{anna}:members"
    for number, foreign in enumerate(
        (
            b"x",
            b"\xff\xfe",
            b"000000000000009[1,2]",
            b"000000000000009{}",
            b'"\\ud800"',
            b'000000000000009["e","i",3]',
            b'000000000000009["e","i","t",""]',
        )
    ):
        other.zadd(members, {foreign: now - number})
    other.zadd(members, {b'000000000000009["half","item"]': now + 0.5, b"old": now - 9 * DAY, b"new": 1e17})
    other.zadd(members, {b'000000000000009["","no id"]': now - 9 * DAY})
    for _ in range(2):
        assert await store.read("anna") == events(now)
    assert await added(store, "anna", events(now, first=1)) == 1
    await store.sweep()
    assert other.hget("fathom:history:{anna}:ids", "") == b"2"
    assert [record.getMessage() for record in caplog.records] == [
        "fathom:history:{USER}:members in Redis holds something that Fathom has not written; it is left out"
    ]
    caplog.clear()
    for key in ("ids", "members"):
        other.flushall()
        assert await added(store, "anna", events(now)) == 1
        other.set(f"fathom:history:{{anna}}:{key}", b"\xff not a history")
        with pytest.raises(UnavailableError, match="what is stored for this user is not a history; delete the user"):
            await store.append("anna", events(now))
        await store.sweep()
        await store.delete("anna")
        assert await store.read("anna") == []
    other.hset("fathom:history:{anna}:ids", "", "not a number")
    with pytest.raises(UnavailableError, match="what is stored for this user is not a history; delete the user"):
        await store.append("anna", events(now + 5))
    assert len(caplog.records) == 1
    other.delete(tombstone := f"fathom:history:deleted:{digest_of('anna')}")
    other.lpush(tombstone, "not a tombstone")
    await store.delete("anna")
    assert (await store.append("anna", events(now))).before_deletion == 1
    await store.close()


async def test_of_a_deleted_user_redis_keeps_no_id(redis_url: str) -> None:
    import redis

    store = open_history(redis_url, Retention())
    assert store is not None
    await store.append("anna-the-user", events(10))
    await store.delete("anna-the-user")
    with redis.Redis.from_url(redis_url) as other:
        assert not [key for key in other.scan_iter() if b"anna" in key]
    await store.close()


async def test_where_a_store_is_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens.
        port = taken.getsockname()[1]
        store = open_history(f"redis://:se-cret@127.0.0.1:{port}/0", Retention())
        assert store is not None
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                await store.read("anna")
        await store.close()
    assert str(caught.value) == "the history store cannot be reached; send item_ids, or try again"
    assert len(caplog.records) == 1
    assert str(port) in caplog.text
    assert "se-cret" not in caplog.text


def test_settings_that_name_no_store_are_refused(tmp_path: Path) -> None:
    assert open_history("off", Retention()) is None
    for setting in ("sqlite:", "disk", "redis:6379", "http://user:secret@host"):
        with pytest.raises(ConfigError, match="is not possible; one of off, memory") as caught:
            open_history(setting, Retention())
        assert "secret" not in str(caught.value)
    text = tmp_path / "notes.txt"
    text.write_text("no database, but long enough to look like a header of one" * 20)
    for path in (text, tmp_path / "no" / "folder.db"):
        with pytest.raises(ConfigError, match="cannot be used for histories"):
            open_history(f"sqlite:{path}", Retention())
    for url in ("redis://host:port", "redis://:se/cret@host", "redis://user:secret#x@host"):
        with pytest.raises(ConfigError, match="not a URL of a Redis server") as caught:
            open_history(url, Retention())
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize("columns", ["thesis (words TEXT)", "events (user TEXT, timestamp INTEGER)"])
def test_a_database_of_something_else_is_refused_and_stays_as_it_was(columns: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    with closing(sqlite3.connect(path)) as mine:
        mine.execute(f"CREATE TABLE {columns}")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="database of something else"):
        open_history(f"sqlite:{path}", Retention())
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["mine.db"]


@asynccontextmanager
async def asking(local: Any, **settings: Any) -> AsyncIterator[AsyncClient]:
    async with local(**settings) as it, AsyncClient(it.info.address) as client:
        yield client


async def test_a_user_is_answered_from_what_was_appended(local: Any) -> None:
    async with asking(local, history="memory") as client:
        bought = [ClientEvent(f"e{i}", f"item-{i}", 1_700_000_000 + i) for i in (3, 1, 2)]
        assert await client.append_events("anna", bought) == 3
        assert await client.append_events("anna", bought) == 0
        known = await client.recommend(user_id="anna", depth=16)
        sent = await client.recommend(["item-1", "item-2", "item-3"], depth=16)
        assert (known.items, known.history_used) == (sent.items, 3)
        assert await client.delete_user("anna") == 3
        with pytest.raises(NotFoundError, match="user 'anna' has no history"):
            await client.recommend(user_id="anna", strict=True)
        assert (await client.recommend(user_id="anna")).reason == "popular"


async def test_the_answer_says_what_became_of_every_event(local: Any) -> None:
    now = int(time.time())

    def sent(*times: int) -> pb.AppendEventsRequest:
        some = [pb.Event(event_id=f"e{at}", item_id="item-1", timestamp=at) for at in times]
        return pb.AppendEventsRequest(user_id="anna", events=some)

    async with local(history="memory", history_max_events=2, history_days=3, history_ahead_s=60) as it:
        first = await it.stub.AppendEvents(sent(now - 3, now - 2, now - 2, now - 1, now - 4 * DAY), timeout=10)
        assert first == pb.AppendEventsResponse(appended=2, already_known=1, too_old=2)
        await it.stub.DeleteUser(pb.DeleteUserRequest(user_id="anna"), timeout=10)
        again = await it.stub.AppendEventStream(iter([sent(now - 3), sent(now - 1, now + 50)]), timeout=10)
        assert again == pb.AppendEventsResponse(appended=1, before_deletion=2)
        with pytest.raises(
            grpc.aio.AioRpcError, match=f"event 'e{now + 90}' is dated {now + 90}, more than 60 s"
        ) as caught:
            await it.stub.AppendEvents(sent(now + 55, now + 90), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await it.stub.Recommend(pb.RecommendRequest(user_id="anna"), timeout=10)).history_used == 1


def texts_in_memory() -> Iterator[str]:
    """Every text that a living object of this process holds."""
    gc.collect()
    holders = gc.get_objects()
    while holders:
        for held in gc.get_referents(holders.pop()):
            if type(held) is str:
                yield held
            elif type(held) in (dict, list, set, tuple) and not gc.is_tracked(held):
                holders.append(held)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_id_of_a_deleted_user_does_not_stay_in_memory(
    kind: str, local: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Backwards, or this test would hold them itself.
    user, event = uuid4().hex, uuid4().hex

    def found() -> list[str]:
        return [text for text in texts_in_memory() if len(text) == len(user) and text[::-1] in (user, event)]

    async def use(client: AsyncClient) -> None:
        assert await client.append_events(user[::-1], [ClientEvent(event[::-1], "item-1", 0)]) == 1
        assert (await client.recommend(user_id=user[::-1])).history_used == 1

    async def delete(client: AsyncClient) -> None:
        assert await client.delete_user(user[::-1]) == 1
        with pytest.raises(NotFoundError):
            await client.recommend(user_id=user[::-1], strict=True)
        assert (await client.recommend(user_id=user[::-1])).reason == "popular"

    history = {"memory": "memory", "sqlite": f"sqlite:{tmp_path / 'history.db'}"}[kind]
    async with asking(local, history=history, metrics_port=0) as client:
        await use(client)
        if kind == "memory":
            assert sorted({text[::-1] for text in found()}) == sorted((user, event))
        await delete(client)
        await client.bundle()  # gRPC holds the last error until the next call.
        assert found() == []
    assert user[::-1] not in caplog.text


async def test_deleting_a_user_is_finished_although_nobody_waits(local: Any) -> None:
    async with asking(local, history="memory") as client:
        await client.append_events("anna", [ClientEvent("e", "item-1", 0)])
        with suppress(DeadlineError):
            await client.delete_user("anna", timeout_s=1e-4)
        await client.delete_user("anna")
        with pytest.raises(NotFoundError):
            await client.recommend(user_id="anna", strict=True)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.AppendEventsRequest(events=[pb.Event(event_id="e", item_id="i")]), "user_id has 0 bytes, at least 1"),
        (pb.AppendEventsRequest(user_id="u" * 129), "user_id has 129 bytes"),
        (pb.AppendEventsRequest(user_id="u", events=[pb.Event(item_id="i")]), "event_id has 0 bytes"),
        (pb.AppendEventsRequest(user_id="u", events=[pb.Event(event_id="e")]), "item_id has 0 bytes"),
        (pb.AppendEventsRequest(user_id="u", events=[pb.Event(event_id="ü" * 65, item_id="i")]), "event_id has 130"),
        (
            pb.AppendEventsRequest(user_id="u", events=[pb.Event(event_id="e", item_id="i", type="ü" * 33)]),
            "type has a type of 66 bytes, at most 64",
        ),
        (
            pb.AppendEventsRequest(user_id="u", events=[pb.Event(event_id="e", item_id="i", timestamp=-1)]),
            "has -1; send",
        ),
        (
            pb.AppendEventsRequest(
                user_id="u", events=[pb.Event(event_id="e", item_id="i", timestamp=1_700_000_000_000)]
            ),
            "not milliseconds",
        ),
        (pb.AppendEventsRequest(user_id="u", events=[pb.Event()] * 10_001), "more than 10000 events; send several"),
    ],
)
async def test_bad_events_are_refused_and_nothing_is_kept(
    local: Any, request_: pb.AppendEventsRequest, text: str
) -> None:
    good = pb.AppendEventsRequest(user_id="u", events=[pb.Event(event_id="good", item_id="item-1")])
    async with local(history="memory") as it:
        for call in (
            it.stub.AppendEvents(request_, timeout=10),
            it.stub.AppendEventStream(iter([good, request_]), timeout=10),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert text in (caught.value.details() or "")
        # The stream's first message stays: that is what sending all of them again is safe for.
        assert (await it.stub.DeleteUser(pb.DeleteUserRequest(user_id="u"), timeout=10)).deleted == 1


async def test_a_stream_appends_what_many_messages_hold(local: Any) -> None:
    messages = [
        pb.AppendEventsRequest(user_id=f"user-{i % 3}", events=[pb.Event(event_id=f"e{i}", item_id=f"item-{i}")])
        for i in range(30)
    ]
    async with local(history="memory") as it:
        assert (await it.stub.AppendEventStream(iter(messages * 2), timeout=10)).appended == 30
        answer = await it.stub.Recommend(pb.RecommendRequest(user_id="user-1"), timeout=10)
        assert answer.history_used == 10
        users = [pb.RecommendRequest(user_id=f"user-{i}", strict=True) for i in (0, 9)]
        batch = pb.RecommendBatchRequest(requests=users)
        known, unknown = (await it.stub.RecommendBatch(batch, timeout=10)).results
        assert known.response.history_used == 10
        assert unknown.error.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_requests_must_choose_between_a_user_and_a_history(local: Any) -> None:
    async with asking(local, history="memory") as client:
        with pytest.raises(InvalidRequestError, match="a user_id and a history; send one"):
            await client.recommend(["item-1"], user_id="anna")
        with pytest.raises(InvalidRequestError, match="user_id has 129 bytes"):
            await client.recommend(user_id="a" * 129)
        with pytest.raises(InvalidRequestError, match="or a user_id"):
            await client.recommend(strict=True)


async def test_what_was_bought_is_left_out_and_what_was_viewed_is_not(local: Any) -> None:
    kinds = ("purchase", "view", "", "view", "purchase")
    items = ["item-1", "item-2", "item-3", "item-4", "item-2"]
    done = [ClientEvent(f"e{i}", item, 100 + i, kind) for i, (item, kind) in enumerate(zip(items, kinds, strict=True))]
    async with asking(local, history="memory") as client:
        assert await client.append_events("anna", done) == 5
        everything = (await client.bundle()).items

        async def left_out(*seen: str, depth: int, **options: Any) -> set[str]:
            options = {"k": everything, "depth": depth, "seen_types": seen, **options}
            stored = await client.recommend(user_id="anna", **options)
            sent = await client.recommend(items, event_types=kinds, **options)
            assert stored.items == sent.items
            return {f"item-{i}" for i in range(everything)} - {item.id for item in stored.items}

        for depth in (0, 4, 16):
            assert await left_out(depth=depth) == set(items)
            assert await left_out("purchase", depth=depth) == {"item-1", "item-2"}
            assert await left_out("view", "purchase", depth=depth) == {"item-1", "item-2", "item-4"}
            assert await left_out("", depth=depth) == {"item-3"}
            assert await left_out("wish", depth=depth) == set()
            assert await left_out("purchase", depth=depth, include_seen=True) == set()
            assert await left_out("purchase", depth=depth, exclude=["item-4"]) == {"item-1", "item-2", "item-4"}
        untyped = await client.recommend(items, k=everything, seen_types=["purchase"])
        assert len(untyped.items) == everything


async def test_types_that_contradict_the_contract_are_refused(local: Any) -> None:
    async with asking(local, history="memory") as client:
        for options, text in (
            ({"event_types": ["view"]}, "event_types has 1 values for 2 items; send one per item, or none"),
            ({"event_types": ["view", "v" * 65]}, "event_types has a type of 65 bytes, at most 64"),
            ({"seen_types": ["ü" * 33]}, "seen_types has a type of 66 bytes, at most 64"),
        ):
            with pytest.raises(InvalidRequestError, match=text):
                await client.recommend(["item-1", "item-2"], **options)
        with pytest.raises(InvalidRequestError, match="a user_id and a history; send one"):
            await client.recommend(user_id="anna", event_types=["view"])


async def test_a_server_without_histories_says_so(local: Any) -> None:
    async with asking(local) as client:
        for call in (client.recommend(user_id="a"), client.append_events("a", []), client.delete_user("a")):
            with pytest.raises(InvalidRequestError, match="this server keeps no histories"):
                await call


async def test_redis_may_go_away_and_come_back(local: Any, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    async with local(history=f"unix://{socket}") as it:
        append = pb.AppendEventsRequest(user_id="anna", events=[pb.Event(event_id="e", item_id="item-1")])
        ask = pb.RecommendRequest(user_id="anna")
        for _ in range(2):
            for call in (it.stub.Recommend(ask, timeout=10), it.stub.AppendEvents(append, timeout=10)):
                with pytest.raises(grpc.aio.AioRpcError, match="the history store cannot be reached") as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-1"]), timeout=10)).history_used == 1
            with redis_at(socket):
                assert (await it.stub.AppendEvents(append, timeout=10)).appended == 1
                assert (await it.stub.Recommend(ask, timeout=10)).history_used == 1


async def test_a_store_that_fails_is_unavailable_and_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "history.db"
    store = open_history(f"sqlite:{path}", Retention())
    assert store is not None
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("ALTER TABLE events RENAME TO elsewhere")
        with pytest.raises(UnavailableError, match="the history store cannot be reached; send"):
            await store.append("anna", events(1))
        with pytest.raises(UnavailableError, match="the history store cannot be reached; send"):
            await store.read("anna")
        # What SQLite says is for the log, once.
        assert [record.getMessage() for record in caplog.records] == [
            f"the history store cannot be reached: {path}: no such table: events"
        ]
        other.execute("ALTER TABLE elsewhere RENAME TO events")
        assert await added(store, "anna", events(1)) == 1
    await store.close()


def test_workers_need_a_store_that_they_share(synthetic_bundle: Path) -> None:
    command = [sys.executable, "-m", "fathom", "serve", str(synthetic_bundle), "--workers", "2", "--history", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "workers do not share memory" in done.stderr
