"""What the server keeps of items: what was last said of each, by bundle, in the order in which it was said.

Changes have numbers, which begin at 1 in every bundle; what is written together has one number. All workers, and all
servers that share a store, apply changes in that order and so come to the same catalogue.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from fathom.serving.faults import Faults


class ItemChange(NamedTuple):
    """What was last said of an item, and when; ``record``: a ``CatalogueItem`` as bytes, None: it was removed."""

    id: str
    version: int
    record: bytes | None


class ItemStore(Protocol):
    """What was said of items; used from one event loop.

    All but ``close`` raise UnavailableError when the store cannot be reached, and OverloadError when it is full. What
    ``write`` has returned is durable, as far as the store keeps anything at all.
    """

    async def write(self, bundle: str, changes: Mapping[str, bytes | None], after: int = 0) -> int:
        """Say something of items, all of it or nothing; None: they are removed. Returns the number of the change.

        ``after``: a number that it must be larger than, even where the store has lost the changes up to it.
        """

    async def changes(self, bundle: str, since: int) -> Sequence[ItemChange]:
        """What was last said of each item, where that was after change ``since``; in the order of the changes."""

    async def page(self, bundle: str, after: str, size: int) -> Sequence[ItemChange]:
        """The first ``size`` items, by id, whose ids come after ``after``."""

    async def close(self) -> None:
        """Give back files and connections."""


class ItemFaults(Faults):
    """Those of a store of items."""

    def __init__(self) -> None:
        super().__init__("item store", "try again")
