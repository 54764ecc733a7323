"""The prefix cache: keys, values and user vectors of answered histories, so that a grown one costs only what is new.

Making a state to keep costs as much again as the answer, so a history whose like has not come back is kept without one.
"""

from collections import OrderedDict
from collections.abc import Iterator
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
#: Of the requests that begin or go on with a history, the share that goes on above which states are made at once.
OFTEN = 0.25
_STEP = 1 / 64


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
    """One history: its user vectors by depth, its state, whether it has grown, and whose it is, where that is known."""

    users: dict[int, NDArray[np.float32]]
    state: CachedState | None = None
    nbytes: int = 0
    grown: bool = False
    owners: set[Owner] = field(default_factory=set)


class CacheHit(NamedTuple):
    """Where a request can begin: ``user``: its vector is cached; ``new``: items that are to be computed.

    ``keep``: make a state that can be cached, although there is none to begin from.
    """

    reused: Reused
    state: CachedState | None = None
    user: NDArray[np.float32] | None = None
    new: int = 0
    keep: bool = False

    def length(self, items: int) -> int:
        """What it costs, as the length of a history; 0 for next to nothing."""
        return 0 if self.reused in ("vector", "prefix") else items


MISS = CacheHit("nothing")
KEEP = CacheHit("nothing", keep=True)


class PrefixCache:
    """A bounded store of histories, least recently used first out. Used from one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.nbytes = 0
        self._growing = 0.0

    def __len__(self) -> int:
        """Histories in it."""
        return len(self._entries)

    def lookup(self, ids: Ids, timestamps: Ids | None, owner: Owner | None = None) -> "CacheHits":
        """What is cached of a history, ``owner``'s, and of those that it grew from by at most MOST_NEW items."""
        found = []
        for new, key in enumerate(_keys(ids, timestamps, MOST_NEW)):
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                found.append((new, entry))
                if new == 0 and owner is not None:
                    entry.owners.add(owner)
        self._learn(found)
        return CacheHits(found, keep=bool(found) or self._growing > OFTEN)

    def _learn(self, found: "list[tuple[int, _Entry]]") -> None:
        """How often histories come back grown: each counts when it is new, and when it first has grown."""
        if not found:
            self._growing -= _STEP * self._growing
            return
        new, entry = found[0]
        if new and not entry.grown:
            entry.grown = True
            self._growing += _STEP * (1 - self._growing)

    def put(
        self,
        ids: Ids,
        timestamps: Ids | None,
        depth: int,
        user: NDArray[np.float32],
        state: CachedState | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Remember a history that was answered at a depth, unless its owner has been forgotten meanwhile.

        ``user``: (width,), copied. ``state``: of this depth, if one was made.
        """
        if owner is not None and owner.forgotten:
            return
        (key,) = _keys(ids, timestamps, 0)
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = _Entry({})
        self.nbytes -= entry.nbytes
        # Of two depths the deeper one serves both.
        if state is not None and (entry.state is None or state.depth >= entry.state.depth):
            entry.state = state
        entry.users[depth] = user.copy()
        if owner is not None:
            entry.owners.add(owner)
        held = len(entry.users) * user.nbytes + (0 if entry.state is None else entry.state.nbytes)
        entry.nbytes = held + len(key) + OVERHEAD
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
    """Remembered histories that a request may begin from: (items that are new, entry), the longest first.

    ``keep``: whether what is computed of it should be kept, too.
    """

    found: list[tuple[int, _Entry]]
    keep: bool = False

    def at(self, depth: int) -> CacheHit:
        """The cheapest way to a depth."""
        for new, entry in self.found:
            state = entry.state
            if new == 0 and depth in entry.users:
                return CacheHit("vector", user=entry.users[depth])
            if state is None:
                continue
            if new and state.depth >= depth:
                return CacheHit("prefix", state=state, new=new)
            if new == 0 and state.depth < depth and state.hidden is not None:
                return CacheHit("layers", state=state)
        return KEEP if self.keep else MISS


NO_HITS = CacheHits([])


def _keys(ids: Ids, timestamps: Ids | None, most: int) -> Iterator[bytes]:
    """The keys of a history and of what it was before its newest items, up to ``most`` and not all of them."""
    items, times = ids.tobytes(), b"" if timestamps is None else timestamps.tobytes()
    size = ids.itemsize
    for end in range(len(items), max(len(items) - (most + 1) * size, 0), -size):
        yield items[:end] + times[:end]
