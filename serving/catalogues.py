"""Keeps the catalogues of the bundles in service in step with what a store says of items."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from fathom.errors import ConfigError, FathomError, RequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue, Prepared
from fathom.serving.deployment import Deployment
from fathom.serving.items.contract import ItemChange, ItemStore
from fathom.serving.items.messages import record_of
from fathom.serving.logs import Seldom
from fathom.serving.uploads import Items

#: How often changes are looked for that nobody has told of: those of other servers, and what a failure has left.
FOLLOW_EVERY_S = 1.0
#: Items that are applied at a time: those of the largest message.
PART = 1_000
#: Those of them that the event loop applies without a pause.
AT_ONCE = 10

log = Seldom("fathom.serving")


class Changed(NamedTuple):
    """What a change has done: items that the catalogue did not hold, and those that it did, before it."""

    new: int
    known: int
    version: int


class Catalogues:
    """Changes catalogues; belongs to one event loop.

    ``choose``: the deployment of a name, as ``Bundles.choose``. ``deployments``: all, whenever it is gone through.
    """

    def __init__(
        self, store: ItemStore, choose: Callable[[str], Deployment], deployments: Iterable[Deployment]
    ) -> None:
        self._store = store
        self._choose = choose
        self._deployments = deployments
        self._turn = asyncio.Lock()

    async def upsert(self, items: Items) -> Changed:
        """Say what items are; raises InvalidRequestError, OverloadError or UnavailableError, and then changes nothing.

        When it returns, this process answers from the new catalogue.
        """
        return await self._change(items.bundle, items.encoded, items.records)

    async def remove(self, bundle: str, ids: Sequence[str]) -> Changed:
        """Take items out; those that are not in the catalogue are ignored."""
        return await self._change(bundle, dict.fromkeys(ids), [])

    async def listed(self, bundle: str, after: str, size: int) -> tuple[Sequence[ItemChange], LiveCatalogue]:
        """What was said of the first ``size`` items whose ids come after ``after``, and the catalogue."""
        deployment = self._choose(bundle)
        return await self._store.page(deployment.name, after, size), deployment.catalogue

    async def follow(self, bundle: str = "") -> None:
        """Apply what the store says that is not applied yet, to one bundle or to all."""
        for deployment in [each for each in self._deployments if bundle in ("", each.name)]:
            async with self._turn:
                await self._catch_up(deployment)

    @asynccontextmanager
    async def taking_over(self, deployment: Deployment) -> AsyncIterator[None]:
        """While this lasts a deployment is in step with the store, and nothing is changed.

        Raises ConfigError where its catalogue cannot change, or the store cannot be read.
        """
        deployment.pipeline.check_grows()
        async with self._turn:
            try:
                await self._catch_up(deployment)
            except RequestError as error:
                raise ConfigError(f"catalogue: {error}") from None
            yield

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            try:
                await self.follow()
            except RequestError:
                pass  # The store has logged it.
            except Exception as error:
                # The next time may succeed; if this ended, the changes of others would never be seen.
                log.warning("the catalogue cannot be brought up to date: %s", brief(repr(error)))

    async def _change(self, bundle: str, changes: Mapping[str, bytes | None], records: Sequence[ItemRecord]) -> Changed:
        async with self._turn:
            deployment = self._choose(bundle)
            await self._catch_up(deployment)
            catalogue = deployment.catalogue
            prepared = await asyncio.to_thread(catalogue.prepare, records)
            known = sum(map(catalogue.holds, changes))
            wanted = {id: record for id, record in changes.items() if record is not None or catalogue.holds(id)}
            if wanted:
                version = await self._store.write(deployment.name, wanted, catalogue.version)
                if version == catalogue.version + 1:
                    removed = [id for id, record in wanted.items() if record is None]
                    await _put(catalogue, prepared, removed, version)
                else:
                    await self._catch_up(deployment)
            return Changed(len(changes) - known, known, catalogue.version)

    async def _catch_up(self, deployment: Deployment) -> None:
        catalogue = deployment.catalogue
        changes = await self._store.changes(deployment.name, catalogue.version)
        if not changes:
            return
        said = {each.id: each.record and pb.CatalogueItem.FromString(each.record) for each in changes}
        parts = list(_parts([record_of(item) for item in said.values() if item]))
        removed = [id for id, item in said.items() if item is None]
        await _put(catalogue, catalogue.prepare([]), removed, catalogue.version)
        for part in parts:
            await _apply(deployment.name, catalogue, part)
        # Only now: what a failure cuts short is begun anew.
        catalogue.apply(catalogue.prepare([]), version=max(each.version for each in changes))


async def _apply(name: str, catalogue: LiveCatalogue, records: Sequence[ItemRecord]) -> None:
    """Apply what is in the store; an item that this bundle cannot place is not offered, and that is logged."""
    try:
        prepared = await asyncio.to_thread(catalogue.prepare, records)
    except FathomError:
        await _apply_fitting(name, catalogue, records)
    else:
        await _put(catalogue, prepared, [], catalogue.version)


async def _apply_fitting(name: str, catalogue: LiveCatalogue, records: Sequence[ItemRecord]) -> None:
    """Apply the records that can be, each with those before it; take out the items of the others."""
    others: list[str] = []
    for record in records:
        try:
            prepared = await asyncio.to_thread(catalogue.prepare, [record])
        except FathomError as error:
            log.warning("catalogue of bundle %s: %s; it is not offered", name, error)
            others.append(record.id)
        else:
            await _put(catalogue, prepared, [], catalogue.version)
    await _put(catalogue, catalogue.prepare([]), others, catalogue.version)
    catalogue.unplaced.update(others)


async def _put(catalogue: LiveCatalogue, prepared: Prepared, removed: Sequence[str], version: int) -> None:
    """Apply what is in the store already; other calls get their turn between two parts."""
    records, vectors, stand_ins = prepared
    for low in range(0, len(records), AT_ONCE):
        rows = slice(low, low + AT_ONCE)
        catalogue.apply(Prepared(records[rows], vectors[rows], stand_ins[rows]), version=catalogue.version)
        await asyncio.sleep(0)
    catalogue.apply(catalogue.prepare([]), removed, version=version)


def _parts(records: Sequence[ItemRecord]) -> Iterator[Sequence[ItemRecord]]:
    """Records in parts, an item that is like others after them: it is placed by their vectors."""
    waiting = {record.id: record for record in records}
    while waiting:
        ready = [each for each in waiting.values() if waiting.keys().isdisjoint(each.similar)]
        # A circle of items that are like each other has to begin somewhere: best with those that are like others too.
        ready = ready or [each for each in waiting.values() if not waiting.keys() >= set(each.similar)]
        ready = ready or list(waiting.values())
        for low in range(0, len(ready), PART):
            yield ready[low : low + PART]
        for record in ready:
            del waiting[record.id]
