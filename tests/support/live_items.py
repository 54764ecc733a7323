"""Items for tests of a catalogue that is changed while it is served, placed by an encoder in three lines."""

from collections.abc import Sequence

import numpy as np

from fathom.runtime.item_vectors import Floats
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue


class SeededEncoder:
    """Every title has a direction of its own: one title, one vector."""

    def __init__(self, width: int = 8) -> None:
        self._width = width

    def encode(self, titles: Sequence[str], categories: Sequence[Sequence[str]], /) -> Floats:  # noqa: ARG002
        """See ``Encoder``."""
        rows = [np.random.default_rng(list(title.encode())).normal(size=self._width) for title in titles]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(-1, self._width)


def upsert(catalogue: LiveCatalogue, *records: ItemRecord) -> None:
    """Prepare and apply records as one change."""
    catalogue.apply(catalogue.prepare(records), version=catalogue.version + 1)


def remove(catalogue: LiveCatalogue, *ids: str) -> None:
    """Take items out as one change."""
    catalogue.apply(catalogue.prepare([]), ids, version=catalogue.version + 1)
