"""The context of a request, such as country and device: how user vectors move with it (``moves.py``)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError
from fathom.runtime.bundle_folder import REBUILD, as_array, as_object
from fathom.runtime.manifest import CONTEXT_CHANGES_FILE, CONTEXT_VALUES_FILE, LONGEST_VALUE_BYTES, Manifest
from fathom.runtime.moves import LARGEST_CHANGE, move

#: Rows of ``Context.changes``, one for each feature whose value is known.
Rows = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Context:
    """How user vectors move, at every depth alike.

    ``values``: each feature that requests may give -> its values that change anything. ``changes``: float32 (all of
    these values, 2, width), what a vector is scaled by besides 1, and what is then added, summed over the features.
    """

    values: Mapping[str, Sequence[str]]
    changes: NDArray[np.float32]

    @cached_property
    def _rows(self) -> dict[str, dict[str, int]]:
        places = iter(range(len(self.changes)))
        return {feature: dict(zip(known, places, strict=False)) for feature, known in self.values.items()}

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        return [(feature, value) for feature, known in self.values.items() for value in known]

    def rows(self, given: Mapping[str, str]) -> Rows:
        """What changes for these values of features; a value that is not known changes nothing."""
        found = (self._rows.get(feature, {}).get(value) for feature, value in given.items())
        return tuple(row for row in found if row is not None)

    def given(self, rows: Rows) -> dict[str, str]:
        """The values of features that rows are of."""
        return dict(self._pairs[row] for row in rows)

    def moved(self, users: NDArray[np.float32], rows: Sequence[Rows]) -> NDArray[np.float32]:
        """User vectors (n, width) for n requests of these contexts."""
        change = np.zeros((len(users), 2 * users.shape[1]), np.float32)
        for own, told in zip(change, rows, strict=True):
            for row in told:
                own += self.changes[row].ravel()
        return move(users, change)


def read_context(path: Path, manifest: Manifest, read: Callable[[str], bytes]) -> Context | None:
    """What a bundle folder has of it; ``read``: a file by its name. Raises BundleError for contents that cannot be."""
    info, width = manifest.context, manifest.model.width
    if info is None:
        return None
    if info.gain is None:
        return Context(dict.fromkeys(info.features, ()), np.zeros((0, 2, width), np.float32))
    file, values = path / CONTEXT_VALUES_FILE, as_object(path / CONTEXT_VALUES_FILE, read(CONTEXT_VALUES_FILE))
    if not all(isinstance(known, list) and set(map(type, known)) <= {str} for known in values.values()):
        raise BundleError(f"{file}: features have lists of texts; another value is among them; {REBUILD}")
    if {feature: len(known) for feature, known in values.items()} != info.features:
        raise BundleError(f"{file}: not the features of the manifest, with as many values; {REBUILD}")
    if [*values] != sorted(values):  # in some languages objects have no order, and rows follow it
        raise BundleError(f"{file}: its features do not ascend; {REBUILD}")
    if any(len(set(known)) < len(known) for known in values.values()):
        raise BundleError(f"{file}: a value occurs twice; {REBUILD}")
    if any(not 1 <= len(value.encode()) <= LONGEST_VALUE_BYTES for value in chain.from_iterable(values.values())):
        raise BundleError(f"{file}: a value is empty or longer than {LONGEST_VALUE_BYTES} bytes; {REBUILD}")
    file, shape = path / CONTEXT_CHANGES_FILE, (sum(info.features.values()), 2, width)
    changes = as_array(file, read(CONTEXT_CHANGES_FILE), np.dtype(np.float32), shape)
    if not (np.abs(changes) <= LARGEST_CHANGE).all():
        raise BundleError(f"{file}: a value that is no number, or too large; {REBUILD}")
    return Context(values, changes)
