"""Events with added items, on real servers: the counting exit learns what such an item follows, and what follows it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fathom.client import AsyncClient, Event
from fathom.runtime.live_catalogue import ItemRecord
from fathom.serving.history.memory import MemoryHistory
from fathom.serving.history.sqlite import SqliteHistory
from fathom.serving.live_counter import LiveCounter

NEW = "new item"


@dataclass(frozen=True)
class Shop:
    """A server that keeps histories, and the items that were added to its catalogue."""

    client: AsyncClient
    counter: LiveCounter
    deployment: Any

    def add(self, *items: str) -> None:
        catalogue = self.deployment.catalogue
        records = [ItemRecord(item, similar=("item-40",)) for item in items]
        catalogue.apply(catalogue.prepare(records), version=catalogue.version + 1)

    async def buy(self, user: str, *items: str, first: int = 0) -> int:
        events = [Event(f"e{at}", item, 1_700_000_000 + at, "purchase") for at, item in enumerate(items, first)]
        return await self.client.append_events(user, events)

    async def best(self, *items: str) -> str:
        """What is recommended first, once what was counted is exchanged."""
        await self.counter.exchange()
        return (await self.client.recommend(items, depth=0)).items[0].id


@asynccontextmanager
async def shop(local: Any, history: str | Path, *items: str, **settings: Any) -> AsyncIterator[Shop]:
    setting = history if isinstance(history, str) else f"sqlite:{history}"
    async with local(history=setting, **settings) as it, AsyncClient(it.info.address) as client:
        opened = Shop(client, it.server._counter, it.server.bundles.choose(""))
        opened.add(*items)
        yield opened


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_an_item_that_users_buy_after_another_is_recommended_after_it(
    kind: str, local: Any, tmp_path: Path
) -> None:
    async with shop(local, "memory" if kind == "memory" else tmp_path / "history.db", NEW) as it:
        before = await it.best("item-7")
        assert before == "item-8"
        for user in "abc":
            assert await it.buy(user, "item-30", "item-7", NEW) == 3
        assert await it.best("item-7") == NEW
        assert await it.best("item-30") == NEW
        # Of those who have it, nobody is given it again, and it is no neighbour of what nobody had before it.
        assert await it.best("item-7", NEW) == before
        assert await it.best("item-20") == "item-21"


async def test_what_follows_a_new_item_is_counted_too(local: Any) -> None:
    async with shop(local, "memory", NEW) as it:
        await it.buy("anna", NEW)
        await it.buy("anna", "item-33", first=1)
        assert await it.best(NEW) == "item-33"


async def test_events_that_are_sent_again_count_once(local: Any, tmp_path: Path) -> None:
    async with shop(local, tmp_path / "history.db", NEW) as it:
        for _ in range(3):
            await it.buy("anna", "item-7", NEW)
            await it.counter.exchange()
        await it.buy("anna", "item-7", NEW, NEW)
        await it.counter.exchange()
        store = it.counter._history
        name = it.deployment.name
        pairs = {(each.source, each.target): each.total for each in await store.counted(name, 0)}
        assert pairs == {("item-7", NEW): 1.5, (NEW, NEW): 2.0}


async def test_counts_outlive_restarts_and_users_and_reach_every_server_of_the_store(
    local: Any, tmp_path: Path
) -> None:
    path = tmp_path / "history.db"
    async with shop(local, path, NEW) as one, shop(local, path, "another", NEW) as two:
        for user in "abc":
            await one.buy(user, "item-7", NEW)
        await one.counter.exchange()
        assert await two.best("item-7") == NEW
        assert await one.client.delete_user("a") == 2
    async with shop(local, path) as again:
        assert await again.best("item-7") == "item-8"
        again.add(NEW)
        assert await again.best("item-7") == NEW
        # Another title means another place, but the same item.
        catalogue = again.deployment.catalogue
        records = [ItemRecord(NEW, title="a title", similar=("item-3",))]
        catalogue.apply(catalogue.prepare(records), version=catalogue.version + 1)
        assert await again.best("item-7") == NEW


async def test_histories_in_memory_are_swept_too(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = asyncio.Event()

    async def noted(self: MemoryHistory) -> int:  # noqa: ARG001
        swept.set()
        return 0

    monkeypatch.setattr(MemoryHistory, "sweep", noted)
    async with shop(local, "memory"):
        await asyncio.wait_for(swept.wait(), 10)


async def test_a_deleted_user_is_not_remembered(local: Any) -> None:
    async with shop(local, "memory", NEW) as it:
        await it.buy("anna", NEW)
        assert len(it.counter._users) == 1
        await it.client.delete_user("anna")
        assert len(it.counter._users) == 0
        # Who has had many others since is not looked up any more either.
        await it.buy("berta", NEW, *(f"item-{i}" for i in range(5)))
        assert len(it.counter._users) == 0


async def test_appends_without_new_items_read_nothing(
    local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = SqliteHistory.read

    async def noted(self: SqliteHistory, user_id: str) -> Any:
        reads.append(user_id)
        return await read(self, user_id)

    monkeypatch.setattr(SqliteHistory, "read", noted)
    async with shop(local, tmp_path / "history.db") as it:
        await it.buy("anna", "item-7", NEW)
        it.add(NEW)
        await it.buy("anna", "item-8", first=2)
        await it.buy("berta", NEW)
        await it.buy("clara", "item-1")
    assert reads == ["berta"]
