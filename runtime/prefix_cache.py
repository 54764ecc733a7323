"""The prefix cache: keys, values and user vectors of answered histories, so that a grown one costs only what is new."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.engines.incremental import CachedState

Ids = NDArray[np.int64]
Reused = Literal["nothing", "prefix", "layers", "vector"]

#: Items that a history may have more than a cached one.
MOST_NEW = 4
#: Bytes of an entry besides its arrays and its key, roughly.
OVERHEAD = 800


class Owner:
    """A user whose histories are cached; nothing more is, once ``forgotten``."""

    __slots__ = ("__weakref__", "forgotten")

    def __init__(self) -> None:
        self.forgotten = False


class Owners:
    """The owners of what is cached or being answered, by name; no others are known."""

    def __init__(self) -> None:
        self._owners: WeakValueDictionary[str, Owner] = WeakValueDictionary()

    def of(self, name: str) -> Owner:
        """The owner of this name: the same one until it is forgotten."""
        return self._owners.setdefault(name, Owner())

    def forget(self, name: str) -> Owner | None:
        """Let what is being answered leave nothing behind; what is cached is for ``PrefixCache.forget``."""
        owner = self._owners.pop(name, None)
        if owner is not None:
            owner.forgotten = True
        return owner


@dataclass(slots=True)
class _Entry:
    """One history: its user vectors by depth, its cached state, and whose it is, where that is known."""

    users: dict[int, NDArray[np.float32]]
    state: CachedState
    nbytes: int = 0
    owners: set[Owner] = field(default_factory=set)


class CacheHit(NamedTuple):
    """Where a request can begin: ``user``: its vector is cached; ``new``: items that are to be computed."""

    reused: Reused
    state: CachedState | None = None
    user: NDArray[np.float32] | None = None
    new: int = 0

    def length(self, items: int) -> int:
        """What it costs, as the length of a history; 0 for next to nothing."""
        return 0 if self.reused in ("vector", "prefix") else items


MISS = CacheHit("nothing")


class PrefixCache:
    """A bounded store of histories, least recently used first out. Used from one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        """Histories in it."""
        return len(self._entries)

    def lookup(self, ids: Ids, timestamps: Ids | None, owner: Owner | None = None) -> "CacheHits":
        """What is cached of a history, ``owner``'s, and of those that it grew from by at most MOST_NEW items."""
        found = []
        for new in range(min(MOST_NEW + 1, len(ids))):
            key = _key(ids[: len(ids) - new], timestamps)
            if key in self._entries:
                self._entries.move_to_end(key)
                entry = self._entries[key]
                found.append((new, entry))
                if new == 0 and owner is not None:
                    entry.owners.add(owner)
        return CacheHits(found)

    def put(
        self,
        ids: Ids,
        timestamps: Ids | None,
        user: NDArray[np.float32],
        state: CachedState,
        owner: Owner | None = None,
    ) -> None:
        """Remember a history that was answered at ``state.depth``, unless its owner has been forgotten meanwhile."""
        if owner is not None and owner.forgotten:
            return
        key = _key(ids, timestamps)
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = _Entry({}, state)
        self.nbytes -= entry.nbytes
        # Of two depths the deeper one serves both.
        if state.depth >= entry.state.depth:
            entry.state = state
        entry.users[state.depth] = user
        if owner is not None:
            entry.owners.add(owner)
        vectors = sum(each.nbytes for each in entry.users.values())
        entry.nbytes = entry.state.nbytes + vectors + len(key) + OVERHEAD
        self._entries[key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.most_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def forget(self, owner: Owner) -> None:
        """Remember no history of this owner any more."""
        for key in [key for key, entry in self._entries.items() if owner in entry.owners]:
            self.nbytes -= self._entries.pop(key).nbytes


class CacheHits(NamedTuple):
    """Remembered histories that a request may begin from: (items that are new, entry), the longest first."""

    found: list[tuple[int, _Entry]]

    def at(self, depth: int) -> CacheHit:
        """The cheapest way to a depth."""
        for new, entry in self.found:
            if new == 0 and depth in entry.users:
                return CacheHit("vector", user=entry.users[depth])
            if new and entry.state.depth >= depth:
                return CacheHit("prefix", state=entry.state, new=new)
            if new == 0 and entry.state.depth < depth and entry.state.hidden is not None:
                return CacheHit("layers", state=entry.state)
        return MISS


NO_HITS = CacheHits([])


def _key(ids: Ids, timestamps: Ids | None) -> bytes:
    return ids.tobytes() if timestamps is None else ids.tobytes() + timestamps[: len(ids)].tobytes()
