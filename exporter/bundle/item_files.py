"""The files of a bundle that describe its items, and what the selector reads of them."""

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CHANGES_FILE,
    CONTEXT_CHANGES_FILE,
    CONTEXT_VALUES_FILE,
    NEIGHBOURS_FILE,
    OFFSETS_FILE,
    POPULARITY_FILE,
    PROJECTION_FILE,
    RECENT_FILE,
    SELECTOR_FILE,
    TEXT_KEYS_FILE,
    TEXT_WEIGHTS_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
)
from fathom.runtime.text_encoder import TextEncoder
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import SelectorTables
from fathom.training.checkpoint import Checkpoint
from fathom.training.context import Context
from fathom.training.counting import CountingTables
from fathom.training.dataset import Sequences
from fathom.training.request_time import RequestTime


def item_files(
    checkpoint: Checkpoint, vectors: ItemVectors, train: Sequences
) -> tuple[dict[str, bytes], SelectorTables]:
    """Path -> contents: catalogue, vectors, popularity and what follows items; and the selector's tables of these."""
    catalogue = {"ids": checkpoint.item_ids, "titles": checkpoint.titles, "categories": checkpoint.categories}
    popularity = np.bincount(train.items, minlength=len(vectors)).astype(np.int64)
    transitions = transition_entropy(train, len(vectors))
    files = {
        CATALOGUE_FILE: _compact_json(catalogue),
        VECTORS_FILE: _npy(vectors.rows),
        POPULARITY_FILE: _npy(popularity),
        TRANSITIONS_FILE: _npy(transitions),
    }
    return files, SelectorTables.build(popularity, vectors, transitions)


def selector_file(complexity: ComplexityModel) -> dict[str, bytes]:
    """Path -> contents: what says how complex a request is."""
    return {SELECTOR_FILE: _compact_json(complexity.to_json())}


def counting_files(tables: CountingTables) -> dict[str, bytes]:
    """Path -> contents: the tables of the counting exit."""
    return {
        OFFSETS_FILE: _npy(tables.offsets),
        NEIGHBOURS_FILE: _npy(tables.neighbours),
        WEIGHTS_FILE: _npy(tables.weights),
        RECENT_FILE: _npy(tables.popularity),
    }


def request_time_files(request_time: RequestTime) -> dict[str, bytes]:
    """Path -> contents: what the time of a request changes."""
    return {CHANGES_FILE: _npy(request_time.changes)}


def context_files(context: Context) -> dict[str, bytes]:
    """Path -> contents: what the context of a request changes, feature by feature in ascending order."""
    owners = np.repeat([*context.values], [len(known) for known in context.values.values()])
    changes = context.changes[np.argsort(owners, kind="stable")]
    values = dict(sorted(context.values.items()))
    return {CONTEXT_VALUES_FILE: _compact_json(values), CONTEXT_CHANGES_FILE: _npy(changes)}


def text_files(encoder: TextEncoder) -> dict[str, bytes]:
    """Path -> contents: the text encoder."""
    return {
        TEXT_KEYS_FILE: _npy(encoder.keys),
        TEXT_WEIGHTS_FILE: _npy(encoder.weights),
        PROJECTION_FILE: _npy(encoder.projection),
    }


def transition_entropy(train: Sequences, items: int) -> NDArray[np.float32]:
    """Entropy in nats of what followed each item, (items,); NaN for an item that nothing followed."""
    follows = train.owners[1:] == train.owners[:-1]
    pairs = train.items[:-1][follows].astype(np.int64) * items + train.items[1:][follows]
    known, counts = np.unique(pairs, return_counts=True)
    first = known // items
    total = np.bincount(first, weights=counts, minlength=items)
    spread = np.bincount(first, weights=counts * np.log(counts), minlength=items)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(total > 0, np.log(total) - spread / total, np.nan)
    return np.maximum(entropy, 0.0).astype(np.float32)


def _compact_json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
