"""Items that are forgotten when the process ends."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from operator import attrgetter

from fathom.serving.items.contract import ItemChange, ItemStore


class MemoryItems(ItemStore):
    """Items in memory."""

    def __init__(self) -> None:
        self._items: defaultdict[str, dict[str, ItemChange]] = defaultdict(dict)
        self._versions: defaultdict[str, int] = defaultdict(int)

    async def write(self, bundle: str, changes: Mapping[str, bytes | None], after: int = 0) -> int:
        version = self._versions[bundle] = max(self._versions[bundle], after) + 1
        self._items[bundle].update((id, ItemChange(id, version, record)) for id, record in changes.items())
        return version

    async def changes(self, bundle: str, since: int) -> Sequence[ItemChange]:
        found = [change for change in self._items[bundle].values() if change.version > since]
        return sorted(found, key=attrgetter("version"))

    async def page(self, bundle: str, after: str, size: int) -> Sequence[ItemChange]:
        return nsmallest(size, (each for each in self._items[bundle].values() if each.id > after), key=attrgetter("id"))

    async def close(self) -> None:
        """There is nothing to give back."""
