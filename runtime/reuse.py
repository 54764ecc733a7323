"""What the pipeline remembers of the histories it has answered, so that a returning one costs only what is new."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.extension import Kept

Ids = NDArray[np.int64]
Reused = Literal["nothing", "prefix", "layers", "vector"]

#: Items that a history may have more than a remembered one.
MOST_NEW = 4
#: Bytes of an entry besides its arrays and its key, roughly.
OVERHEAD = 600


@dataclass(slots=True)
class _Entry:
    """One history: its user vectors by depth, and what is kept of it."""

    users: dict[int, NDArray[np.float32]]
    kept: Kept
    nbytes: int = 0


class Start(NamedTuple):
    """Where a request can begin: ``user``: it has its vector already; ``new``: items that are to be computed."""

    reused: Reused
    kept: Kept | None = None
    user: NDArray[np.float32] | None = None
    new: int = 0

    def length(self, items: int) -> int:
        """What it costs, as the length of a history; 0 for next to nothing."""
        return 0 if self.reused in ("vector", "prefix") else items


NOTHING = Start("nothing")


class Memory:
    """A bounded store of histories, least recently used first out. Used from one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        """Histories in it."""
        return len(self._entries)

    def starts(self, ids: Ids, timestamps: Ids | None) -> "Starts":
        """What is remembered of a history and of those that it grew from by at most MOST_NEW items."""
        found = []
        for new in range(min(MOST_NEW + 1, len(ids))):
            key = _key(ids[: len(ids) - new], timestamps)
            if key in self._entries:
                self._entries.move_to_end(key)
                found.append((new, self._entries[key]))
        return Starts(found)

    def put(self, ids: Ids, timestamps: Ids | None, user: NDArray[np.float32], kept: Kept) -> None:
        """Remember a history that was answered at ``kept.depth``."""
        key = _key(ids, timestamps)
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = _Entry({}, kept)
        self.nbytes -= entry.nbytes
        # Of two depths the deeper one serves both.
        if kept.depth >= entry.kept.depth:
            entry.kept = kept
        entry.users[kept.depth] = user
        vectors = sum(each.nbytes for each in entry.users.values())
        entry.nbytes = entry.kept.nbytes + vectors + len(key) + OVERHEAD
        self._entries[key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.most_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes


class Starts(NamedTuple):
    """Remembered histories that a request may begin from: (items that are new, entry), the longest first."""

    found: list[tuple[int, _Entry]]

    def at(self, depth: int) -> Start:
        """The cheapest way to a depth."""
        for new, entry in self.found:
            if new == 0 and depth in entry.users:
                return Start("vector", user=entry.users[depth])
            if new and entry.kept.depth >= depth:
                return Start("prefix", kept=entry.kept, new=new)
            if new == 0 and entry.kept.depth < depth and entry.kept.hidden is not None:
                return Start("layers", kept=entry.kept)
        return NOTHING


NO_STARTS = Starts([])


def _key(ids: Ids, timestamps: Ids | None) -> bytes:
    return ids.tobytes() if timestamps is None else ids.tobytes() + timestamps[: len(ids)].tobytes()
