"""A bundle with a far larger catalogue, whose item vectors have the statistics of its own."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.bundle.derive import derive_bundle
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CERTIFICATE_FILE,
    OFFSETS_FILE,
    POPULARITY_FILE,
    RECENT_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
)
from fathom.runtime.retriever import FlatRetriever

Floats = NDArray[np.float32]

#: Neighbours that say how items lie around one, and how far new items lie from it, as a share of the way to these.
NEIGHBOURS, BANDWIDTH = 16, 1.0
_PART = 100_000


def denser(vectors: Floats, items: int, rng: np.random.Generator) -> Floats:
    """Unit vectors (items, width): those that are given, (n, width), and others drawn from their density.

    A kernel density estimate whose kernel at each item has the covariance of the ways to its nearest neighbours, so
    what is drawn keeps the directions in which items differ there, and users lie as far from it as from the items.
    """
    n, width = vectors.shape
    near = _neighbours(vectors)
    made = np.empty((items, width), np.float32)
    made[:n] = vectors
    for low in range(n, items, _PART):
        part = made[low : low + _PART]
        centres = rng.integers(0, n, len(part))
        part[:] = vectors[centres]
        for neighbour in near[centres].T:
            steps = rng.standard_normal((len(part), 1), dtype=np.float32) * np.float32(BANDWIDTH / NEIGHBOURS**0.5)
            part += steps * (vectors[neighbour] - vectors[centres])
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def _neighbours(vectors: Floats) -> NDArray[np.int64]:
    """The nearest items of each, without itself, (n, 16)."""
    flat, found = FlatRetriever(ItemVectors(vectors)), []
    for low in range(0, len(vectors), 64):
        some = np.arange(low, min(low + 64, len(vectors)))
        keeps = [ItemFilter(exclude=np.array([item])) for item in some]
        found += [items for items, _ in flat.search(vectors[some], [NEIGHBOURS] * len(some), keeps)]
    return np.stack(found)


def write_denser(source: Bundle, out: Path, items: int, seed: int) -> None:
    """Write the bundle with so many items; those that it lacks have neither titles nor events."""
    more, old = items - len(source.vectors), source.catalogue
    vectors = denser(np.asarray(source.vectors), items, np.random.default_rng(seed))
    catalogue = {
        "ids": [*old.ids, *(f"more-{number}" for number in range(more))],
        "titles": [*old.titles, *[""] * more],
        "categories": [*old.categories, *[()] * more],
    }
    new = {
        CATALOGUE_FILE: json.dumps(catalogue).encode(),
        VECTORS_FILE: _npy(ItemVectors.store(vectors, source.vectors.precision).rows),
        POPULARITY_FILE: _npy(np.pad(source.popularity, (0, more))),
        TRANSITIONS_FILE: _npy(np.full(items, np.nan, np.float32)),
    }
    if source.counting is not None:
        new[OFFSETS_FILE] = _npy(np.pad(source.counting.offsets, (0, more), mode="edge"))
        new[RECENT_FILE] = _npy(np.pad(source.counting.popularity, (0, more)))
    del vectors, catalogue
    derive_bundle(source, out, new, drop=[CERTIFICATE_FILE], items=items, fits={})


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
