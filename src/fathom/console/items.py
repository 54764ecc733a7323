"""Items by their titles, as far as a server can tell them."""

from collections.abc import Iterable
from dataclasses import dataclass

#: Matches that are shown for one search.
MOST_MATCHES = 20


@dataclass(frozen=True)
class TitledItem:
    """An item; ``title`` is empty where the server has none."""

    id: str
    title: str


class ItemIndex:
    """Items to search, the most popular first.

    ``complete``: these are all items of the catalogue; else only its most popular ones.
    """

    def __init__(self, items: Iterable[TitledItem], *, complete: bool) -> None:
        self._items = [(f"{item.title}\n{item.id}".casefold(), item) for item in items]
        self.complete = complete

    def __len__(self) -> int:
        return len(self._items)

    def search(self, text: str, most: int = MOST_MATCHES) -> list[TitledItem]:
        """Items that contain every word of the text; the id itself first, then titles that begin with the text."""
        wanted = text.casefold().strip()
        words = wanted.split()
        if not words:
            return []
        found = [item for where, item in self._items if all(word in where for word in words)]

        def rank(item: TitledItem) -> int:
            return 0 if item.id.casefold() == wanted else 1 if item.title.casefold().startswith(wanted) else 2

        return sorted(found, key=rank)[:most]
