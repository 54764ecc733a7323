"""Counts, as events come, what follows items that a bundle was not trained with, and what they follow.

The sums are kept beside the histories, those of each bundle for themselves, and name no user. Every worker takes in
what others have added. An append without such items, of a user who has had none lately, costs what it would anyway.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fathom.errors import RequestError, brief
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.live_counts import LivePairs
from fathom.runtime.manifest import CountingInfo
from fathom.serving.deployment import Deployment
from fathom.serving.history.contract import PAIRS_AT_ONCE, Appended, HistoryStore, Retention, StoredEvent, digest_of
from fathom.serving.live_pairs import Pairs, new_pairs
from fathom.serving.logs import Seldom

#: How often sums are written and read; of a process that is killed, those of so long are lost.
EVERY_S = 1.0
#: Users who have had an added item lately that are remembered, and pairs of a bundle that wait to be written.
MOST_USERS, MOST_WAITING = 100_000, 100_000

#: New events that are counted without a pause.
FEW = 64

log = Seldom("fathom.serving")


@dataclass(eq=False)
class _Counted:
    """What is counted for a deployment; ``since``: the last change that was read, of ``items`` in the catalogue."""

    deployment: Deployment
    catalogue: LiveCatalogue
    pairs: LivePairs
    counting: CountingInfo
    since: int = 0
    items: int = 0

    def added(self, item: str) -> bool:
        """Whether an item is in the catalogue and the bundle was not trained with it."""
        place = self.catalogue.find(item)
        return place is not None and place >= self.catalogue.trained

    def new_pairs(self, history: Sequence[StoredEvent], new: Collection[str]) -> Mapping[tuple[str, str], float]:
        """What new events of a user's history add, of items in the catalogue; may run in another thread."""
        info, find = self.counting, self.catalogue.find
        pairs = new_pairs(history, new, self.added, info.max_lag, info.event_weights)
        return {pair: gain for pair, gain in pairs.items() if all(find(item) is not None for item in pair)}


class LiveCounter:
    """Appends events to a store of histories, and counts them once; belongs to one event loop.

    ``deployments``: those that are served whenever it is gone through.
    """

    def __init__(self, history: HistoryStore, retention: Retention, deployments: Iterable[Deployment]) -> None:
        self._history = history
        self._retention = retention
        self._deployments = deployments
        self._counted: dict[str, _Counted] = {}
        self._waiting: dict[str, Pairs] = {}
        # Users among whose newest events is one of an added item, by the digest of their ids.
        self._users: OrderedDict[str, None] = OrderedDict()

    async def append(
        self, user_id: str, events: Sequence[StoredEvent], counts_for: Callable[[str], bool] = lambda _: True
    ) -> Appended:
        """``HistoryStore.append``, and counts what is new, for the bundles whose user it can be."""
        counted = [each for each in self._growing() if counts_for(each.deployment.name)]
        concerned = any(each.added(event.item_id) for each in counted for event in events)
        if not concerned and not (counted and self._users and digest_of(user_id) in self._users):
            return await self._history.append(user_id, events)
        before = await self._history.read(user_id)
        done = await self._history.append(user_id, events)
        known, sent = {event.event_id for event in before}, dict[str, StoredEvent]()
        for event in events:
            if event.event_id not in known:
                sent.setdefault(event.event_id, event)
        history = self._retention.trim([*before, *sent.values()])
        new = {event.event_id for event in history if event.event_id in sent}
        # Otherwise the same events were sent twice at once, or the user was deleted: rather not counted than twice.
        if new and len(new) == done.added:
            self._remember(
                user_id, any(each.added(e.item_id) for each in counted for e in history[-each.counting.max_lag :])
            )
            for each in counted:
                if len(new) <= FEW:
                    pairs = each.new_pairs(history, new)
                else:
                    pairs = await asyncio.to_thread(each.new_pairs, history, new)
                self._wait(each.deployment.name, pairs)
        return done

    def forget(self, digest: str = "") -> None:
        """Forget that a user has had an added item; without a digest, of everybody."""
        if digest:
            self._users.pop(digest, None)
        else:
            self._users.clear()

    async def run(self) -> None:
        """Exchange sums with the store until cancelled."""
        while True:
            try:
                await self.exchange()
            except RequestError:
                pass  # The store has logged it.
            except Exception as error:
                # The next time may succeed; if this ended, nothing would be counted any more.
                log.warning("what is counted live cannot be exchanged: %s", brief(repr(error)))
            await asyncio.sleep(EVERY_S)

    async def exchange(self) -> None:
        """Write what was counted here and take in what was counted anywhere; raises what the store raises."""
        for name in list(self._waiting):
            pairs = list(self._waiting.pop(name).items())
            for low in range(0, len(pairs), PAIRS_AT_ONCE):
                try:
                    await self._history.count(name, dict(pairs[low : low + PAIRS_AT_ONCE]))
                except RequestError:
                    self._wait(name, dict(pairs[low:]))
                    raise
                await asyncio.sleep(0)  # Others have their turn, even where the store is in memory.
        for each in self._growing():
            if each.items != len(each.catalogue):
                each.items = len(each.catalogue)
                each.pairs.refresh()
            while part := await self._history.counted(each.deployment.name, each.since):
                each.pairs.put((pair.source, pair.target, pair.total) for pair in part)
                each.since = part[-1].change
                await asyncio.sleep(0)

    def _growing(self) -> Iterator[_Counted]:
        """What is counted for the bundles in service that have added items."""
        for deployment in self._deployments:
            catalogue, found = deployment.catalogue, self._counted.get(deployment.name)
            if found is not None and found.deployment is not deployment:
                # It was exchanged.
                del self._counted[deployment.name]
                found = None
            if len(catalogue) == catalogue.trained:
                continue
            if found is None:
                counting, info = deployment.bundle.counting, deployment.bundle.manifest.counting
                if info is None or counting is None or counting.live is None:
                    continue
                pairs = LivePairs(catalogue.find, counting.live)
                found = self._counted[deployment.name] = _Counted(deployment, catalogue, pairs, info)
            yield found

    def _wait(self, name: str, pairs: Mapping[tuple[str, str], float]) -> None:
        if not pairs:
            return
        waiting = self._waiting.setdefault(name, defaultdict(float))
        for pair, gain in pairs.items():
            if pair in waiting or len(waiting) < MOST_WAITING:
                waiting[pair] += gain

    def _remember(self, user_id: str, lately: bool) -> None:
        digest = digest_of(user_id)
        self._users.pop(digest, None)
        if lately:
            self._users[digest] = None
        if len(self._users) > MOST_USERS:
            self._users.popitem(last=False)
