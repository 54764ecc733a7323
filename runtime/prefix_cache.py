"""The prefix cache: keys, values and user vectors of answered histories, so that a grown one costs only what is new.

Making a state to go on from takes time and nearly all of the memory, and going on from it costs as much as a short
history afresh. So states are made where histories are long and often come back; others are kept with a vector alone.

A history at its longest loses its oldest item with each new one. Through d layers that each look back over a span, the
newest position sees d * (span - 1) older ones. Where all of those are left, a depth's answer is the same whether its
state began with the lost items or not, and it goes on from the state. Deeper ones are computed afresh.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.engines.incremental import CachedState

Ids = NDArray[np.int64]
Reused = Literal["nothing", "prefix", "layers", "vector"]

#: Items that a history may have more than a cached one.
MOST_NEW = 4
#: Bytes of an entry besides its arrays and its key, roughly; of a history that was met once.
OVERHEAD, OVERHEAD_ONCE = 800, 350
#: What making a state costs, and going on from it, in items of a history that is computed afresh.
STATE_ITEMS, RESUMED_ITEMS = 50, 50
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
    """One history: its user vectors by depth, whose it is, where that is known, and its state, if one was made.

    ``tail``: the key of its items without the oldest MOST_NEW, where it is at its longest and others may slide from it.
    """

    users: dict[int, NDArray[np.float32]]
    owners: set[Owner]
    state: CachedState | None = None
    tail: bytes | None = None


#: A history that was met once, without a state: depth, user vector, owner. There may be tens of thousands, so this is a
#: plain tuple, in which the garbage collector soon loses interest: looking at as many objects takes it 80 ms.
_Once = tuple[int, NDArray[np.float32], Owner | None]


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
    """A bounded store of histories, least recently used first out. Used from one event loop.

    ``longest``: items of the longest histories. ``span``: positions that a layer looks back over, its own included.
    """

    def __init__(self, most_bytes: int, longest: int = 0, span: int = 0) -> None:
        self.most_bytes = most_bytes
        self._longest, self._span = longest, span
        #: The deepest depth whose answer sees nothing of what a history at its longest has lost.
        self._slides = max(0, longest - MOST_NEW) // (span - 1) if span > 1 else 0
        self._tails: dict[bytes, bytes] = {}
        self._entries: OrderedDict[bytes, _Entry | _Once] = OrderedDict()
        self.nbytes = 0
        #: How often, of late, a history that is not in it has grown from one that is.
        self._growing = 0.0

    def __len__(self) -> int:
        """Histories in it."""
        return len(self._entries)

    def lookup(self, ids: Ids, timestamps: Ids | None, owner: Owner | None = None, scope: bytes = b"") -> "CacheHits":
        """What is cached of a history, ``owner``'s, and of those that it grew from by at most MOST_NEW items.

        Only what was put under the same ``scope``.
        """
        found = []
        items, times = ids.tobytes(), None if timestamps is None else timestamps.tobytes()
        for new in range(min(MOST_NEW + 1, len(ids))):
            end = len(items) - new * ids.itemsize
            key = scope + items[:end] if times is None else scope + items[:end] + times[:end]
            if key in self._entries:
                entry = _entry_of(self._removed(key))
                self._add(key, entry)
                found.append((new, entry))
                if new == 0 and owner is not None:
                    entry.owners.add(owner)
        slid = self._slid(ids, timestamps, scope) if self._slides and len(ids) == self._longest else []
        if not found or found[0][0]:
            self._growing += _STEP * (bool(found or slid) - self._growing)
        return CacheHits(found, self._growing * (len(ids) - RESUMED_ITEMS) > STATE_ITEMS, slid, self._slides)

    def empty(self) -> "PrefixCache":
        """Another one like this, with nothing in it."""
        return PrefixCache(self.most_bytes, self._longest, self._span)

    def _slid(self, ids: Ids, timestamps: Ids | None, scope: bytes) -> list[tuple[int, CachedState]]:
        """States of histories that were at their longest, at most MOST_NEW items ago, as states of what is left."""
        found = []
        for new in range(1, MOST_NEW + 1):
            left = slice(MOST_NEW - new, self._longest - new)
            key = self._tails.get(_key(ids[left], None if timestamps is None else timestamps[left], scope))
            if key is not None:
                entry = _entry_of(self._removed(key))
                self._add(key, entry)
                assert entry.state is not None
                found.append((new, replace(entry.state, length=self._longest - new, hidden=None)))
        return found

    def put(
        self,
        ids: Ids,
        timestamps: Ids | None,
        depth: int,
        user: NDArray[np.float32],
        state: CachedState | None = None,
        owner: Owner | None = None,
        scope: bytes = b"",
    ) -> None:
        """Remember a history that was answered at a depth, unless its owner has been forgotten meanwhile.

        ``user``: (width,), copied. ``state``: of this depth, if one was made.
        """
        if owner is not None and owner.forgotten:
            return
        key = _key(ids, timestamps, scope)
        before = self._removed(key) if key in self._entries else None
        once: _Once = depth, user.copy(), owner
        if before is None and state is None:
            self._add(key, once)
        else:
            entry = _entry_of(once if before is None else before)
            entry.users[depth] = once[1]
            if owner is not None:
                entry.owners.add(owner)
            # Of two depths the deeper one serves both.
            if state is not None and (entry.state is None or state.depth >= entry.state.depth):
                entry.state = state
                if self._slides and len(ids) == self._longest:
                    entry.tail = _key(ids[MOST_NEW:], None if timestamps is None else timestamps[MOST_NEW:], scope)
            self._add(key, entry)
        while self.nbytes > self.most_bytes:
            self._removed(next(iter(self._entries)))

    def _add(self, key: bytes, entry: _Entry | _Once) -> None:
        """As the one that was used last."""
        self._entries[key] = entry
        self.nbytes += _nbytes(key, entry)
        if isinstance(entry, _Entry) and entry.tail is not None:
            self._tails[entry.tail] = key

    def _removed(self, key: bytes) -> _Entry | _Once:
        entry = self._entries.pop(key)
        self.nbytes -= _nbytes(key, entry)
        if isinstance(entry, _Entry) and entry.tail is not None and self._tails.get(entry.tail) == key:
            del self._tails[entry.tail]
        return entry

    def forget(self, owner: Owner) -> None:
        """Remember no history of this owner any more."""
        for key in [key for key, entry in self._entries.items() if owner in _owners(entry)]:
            self._removed(key)


class CacheHits(NamedTuple):
    """Remembered histories that a request may begin from: (items that are new, entry), the longest first.

    ``keep``: whether a state that is made of it will probably be worth it. ``slid``: (items that are new, state) of
    longer ones of which it has lost the beginning, for depths up to ``slides``.
    """

    found: list[tuple[int, _Entry]]
    keep: bool = False
    slid: Sequence[tuple[int, CachedState]] = ()
    slides: int = 0

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
        for new, left in self.slid if depth <= self.slides else ():
            if left.depth >= depth:
                return CacheHit("prefix", state=left, new=new)
        return KEEP if self.keep else MISS


NO_HITS = CacheHits([])


def _key(ids: Ids, timestamps: Ids | None, scope: bytes) -> bytes:
    return scope + ids.tobytes() if timestamps is None else scope + ids.tobytes() + timestamps.tobytes()


def _entry_of(kept: _Entry | _Once) -> _Entry:
    if isinstance(kept, _Entry):
        return kept
    depth, user, owner = kept
    return _Entry({depth: user}, set() if owner is None else {owner})


def _nbytes(key: bytes, entry: _Entry | _Once) -> int:
    if not isinstance(entry, _Entry):
        return len(key) + entry[1].nbytes + OVERHEAD_ONCE
    vectors = sum(user.nbytes for user in entry.users.values())
    state = 0 if entry.state is None else entry.state.nbytes
    return len(key) + len(entry.tail or b"") + vectors + state + OVERHEAD


def _owners(entry: _Entry | _Once) -> Collection[Owner | None]:
    return entry.owners if isinstance(entry, _Entry) else (entry[2],)
