"""Reads everything in a bundle but its engines, checked against the manifest and against each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, BundleError, brief
from fathom.runtime.bundle_folder import REBUILD, as_array, as_object, read_listed
from fathom.runtime.catalogue import Catalogue
from fathom.runtime.context import Context, read_context
from fathom.runtime.counting import Counting
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.live_counts import LiveCounts
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CERTIFICATE_FILE,
    CHANGES_FILE,
    CONTEXT_CHANGES_FILE,
    CONTEXT_FILES,
    CONTEXT_VALUES_FILE,
    COUNTING_FILES,
    INDEX_FILE,
    NEIGHBOURS_FILE,
    OFFSETS_FILE,
    POPULARITY_FILE,
    PROJECTION_FILE,
    RECENT_FILE,
    SELECTOR_FILE,
    TEXT_FILES,
    TEXT_KEYS_FILE,
    TEXT_WEIGHTS_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
    WHOLE_VERSION,
    FileEntry,
    Manifest,
    depth_digests,
)
from fathom.runtime.request_time import BUCKETS, RequestTime, read_request_time
from fathom.runtime.text_encoder import TextEncoder
from fathom.selector.certificate import Certificate
from fathom.selector.complexity import Complexity, read_complexity
from fathom.selector.features import SelectorTables

#: Files that ``read_contents`` reads, and so checks, in any case.
READ_AT_OPEN = {
    CATALOGUE_FILE,
    VECTORS_FILE,
    POPULARITY_FILE,
    TRANSITIONS_FILE,
    SELECTOR_FILE,
    CERTIFICATE_FILE,
    CHANGES_FILE,
    *CONTEXT_FILES,
    *COUNTING_FILES,
    *TEXT_FILES,
}
#: Bytes that the files of a bundle can have at most; an ONNX file holds no more than 2 GB.
_LARGEST_JSON = 64 << 20
_LARGEST_ITEM = 16 << 10
_LARGEST_ENGINE = 2 << 30
_NPY_HEADER = 4096
#: Of an index: beside its vectors, for each item, and for each of its lists.
_INDEX_OF_AN_ITEM, _INDEX_OF_A_LIST = 1 << 10, 1 << 10
_PAIRS: tuple[tuple[str, type[np.generic]], ...] = ((NEIGHBOURS_FILE, np.int32), (WEIGHTS_FILE, np.float32))
#: Whole numbers up to here are exact as floats.
_LARGEST_COUNT = 1 << 53
#: In nats: far above that of any catalogue.
_LARGEST_ENTROPY = 64.0


class Contents(NamedTuple):
    """What ``Bundle`` says of each."""

    catalogue: Catalogue
    vectors: ItemVectors
    popularity: NDArray[np.int64]
    tables: SelectorTables
    complexity: Complexity
    certificate: Certificate | None
    counting: Counting | None
    text_encoder: TextEncoder | None
    request_time: RequestTime | None
    context: Context | None


def check_size(path: Path, name: str, entry: FileEntry, manifest: Manifest) -> None:
    """Raise BundleError where the manifest gives a file more bytes than one of its kind can have."""
    model = manifest.model
    limits = {
        CATALOGUE_FILE: _LARGEST_JSON + manifest.items * _LARGEST_ITEM,
        SELECTOR_FILE: _LARGEST_JSON,
        CERTIFICATE_FILE: _LARGEST_JSON,
        VECTORS_FILE: _NPY_HEADER
        + manifest.items * model.width * ItemVectors.type_of(manifest.item_precision).itemsize,
        POPULARITY_FILE: _NPY_HEADER + manifest.items * 8,
        TRANSITIONS_FILE: _NPY_HEADER + manifest.items * 4,
        OFFSETS_FILE: _NPY_HEADER + (manifest.items + 1) * 8,
        RECENT_FILE: _NPY_HEADER + manifest.items * 4,
        INDEX_FILE: _index_limit(manifest),
        CHANGES_FILE: _NPY_HEADER + 8 * BUCKETS * model.width,
        CONTEXT_VALUES_FILE: _LARGEST_JSON,
        CONTEXT_CHANGES_FILE: _context_limit(manifest),
        **_text_limits(manifest),
    }
    most = limits.get(name, _LARGEST_ENGINE)
    if entry.bytes > most:
        raise BundleError(f"{path / brief(name)}: {entry.bytes} bytes, at most {most} are possible; {REBUILD}")


def _index_limit(manifest: Manifest) -> int:
    lists = 0 if manifest.retrieval is None else manifest.retrieval.lists
    vector = 4 * manifest.model.width
    return _LARGEST_JSON + manifest.items * (vector + _INDEX_OF_AN_ITEM) + lists * (vector + _INDEX_OF_A_LIST)


def _context_limit(manifest: Manifest) -> int:
    values = 0 if manifest.context is None else sum(manifest.context.features.values())
    return _NPY_HEADER + 8 * values * manifest.model.width


def _text_limits(manifest: Manifest) -> dict[str, int]:
    features = 0 if manifest.text is None else manifest.text.features
    sizes = {TEXT_KEYS_FILE: 4 * features, TEXT_WEIGHTS_FILE: 4 * features}
    sizes[PROJECTION_FILE] = 2 * (features + 1) * manifest.model.width
    return {name: _NPY_HEADER + size for name, size in sizes.items()}


def read_contents(path: Path, manifest: Manifest, *, with_certificate: bool) -> Contents:
    """The contents of a bundle folder with this manifest; raises as ``Bundle.open`` does."""

    def read(name: str) -> bytes:
        return read_listed(path, name, manifest.files[name])

    def array(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return as_array(path / name, read(name), np.dtype(dtype), (manifest.items, *shape))

    catalogue = _catalogue(path / CATALOGUE_FILE, read(CATALOGUE_FILE), manifest.items)
    kind = ItemVectors.type_of(manifest.item_precision)
    vectors = ItemVectors(array(VECTORS_FILE, kind, manifest.model.width))
    _check_unit_rows(path / VECTORS_FILE, vectors)
    popularity = array(POPULARITY_FILE, np.int64)
    if popularity.min() < 0 or popularity.max() > _LARGEST_COUNT:
        raise BundleError(f"{path / POPULARITY_FILE}: a count that is negative or too large; {REBUILD}")
    transitions = array(TRANSITIONS_FILE, np.float32)
    if (transitions < 0).any() or (transitions > _LARGEST_ENTROPY).any():
        raise BundleError(f"{path / TRANSITIONS_FILE}: an entropy that is negative or too large; {REBUILD}")
    tables = SelectorTables.build(popularity, vectors, transitions)
    certificate = read_certificate(path, manifest) if with_certificate else None
    selector = _selector(path / SELECTOR_FILE, read(SELECTOR_FILE))
    counting, encoder = _counting(path, manifest, popularity, read), _text_encoder(path, manifest, read)
    told = read_request_time(path, manifest, read), read_context(path, manifest, read)
    return Contents(catalogue, vectors, popularity, tables, selector, certificate, counting, encoder, *told)


def _catalogue(file: Path, data: bytes, items: int) -> Catalogue:
    value = as_object(file, data)
    ids, titles, categories = (value.get(key) for key in ("ids", "titles", "categories"))
    lists = [each for each in (ids, titles, categories) if isinstance(each, list)]
    if len(lists) != 3 or len(value) != 3:
        raise BundleError(f"{file}: needs the lists ids, titles and categories, and nothing else; {REBUILD}")
    if {len(each) for each in lists} != {items}:
        lengths = sorted({len(each) for each in lists})
        raise BundleError(f"{file}: lists of length {lengths} where {items} items are needed; {REBUILD}")
    ids, titles, categories = lists
    if not (
        _all_text(ids) and _all_text(titles) and all(isinstance(each, list) and _all_text(each) for each in categories)
    ):
        raise BundleError(f"{file}: ids, titles and categories are texts; another value is among them; {REBUILD}")
    catalogue = Catalogue(tuple(ids), tuple(titles), tuple(map(tuple, categories)))
    if len(catalogue.index) != items:
        raise BundleError(f"{file}: an id occurs twice; {REBUILD}")
    if "" in catalogue.index:
        raise BundleError(f"{file}: an id is empty; {REBUILD}")
    return catalogue


def _all_text(values: list[Any]) -> bool:
    return set(map(type, values)) <= {str}


def _check_unit_rows(file: Path, vectors: ItemVectors) -> None:
    """Norms are what make a score a cosine; one sum is NaN or infinite when any element is."""
    with np.errstate(all="ignore"):
        if vectors.scales is None:
            squares = np.einsum("ij,ij->i", vectors.rows, vectors.rows, dtype=np.float32)
            sound = bool(np.all(np.abs(np.sqrt(squares) - 1) < 1e-2))
        else:
            sound = bool(np.all(np.isfinite(vectors.scales)))
    if not sound:
        raise BundleError(f"{file}: rows are not unit vectors; {REBUILD}")


def _selector(file: Path, data: bytes) -> Complexity:
    try:
        return read_complexity(as_object(file, data), where=str(file))
    except BundleError:
        raise
    except ArtefactError as error:
        raise BundleError(str(error)) from None


def read_certificate(path: Path, manifest: Manifest) -> Certificate | None:
    """The certificate of a bundle folder with this manifest; None where it has none.

    Raises BundleError, for a promise about other files or about depths that run something else too.
    """
    if CERTIFICATE_FILE not in manifest.files:
        return None
    file = path / CERTIFICATE_FILE
    try:
        data = read_listed(path, CERTIFICATE_FILE, manifest.files[CERTIFICATE_FILE])
        certificate = Certificate.parse(data, where=str(file))
    except BundleError:
        raise
    except ArtefactError as error:
        raise BundleError(str(error)) from None
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
    other: object = certificate.differing(files)
    if other is None and (certificate.depths or manifest.schema_version >= WHOLE_VERSION):
        depth = certificate.differing_depth(depth_digests(manifest))
        other = None if depth is None else f"depth {depth}"
    if other is not None:
        raise BundleError(f"{file}: certifies another {other}; run `fathom certify` on this bundle")
    return certificate


def _counting(
    path: Path, manifest: Manifest, events: NDArray[np.int64], read: Callable[[str], bytes]
) -> Counting | None:
    info = manifest.counting
    if info is None:
        return None

    def array(name: str, dtype: Any, length: int) -> NDArray[Any]:
        return as_array(path / name, read(name), np.dtype(dtype), (length,))

    offsets = array(OFFSETS_FILE, np.int64, manifest.items + 1)
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise BundleError(f"{path / OFFSETS_FILE}: does not ascend from 0; {REBUILD}")
    neighbours, weights = (array(name, kind, int(offsets[-1])) for name, kind in _PAIRS)
    if len(neighbours) and (neighbours.min() < 0 or neighbours.max() >= manifest.items):
        raise BundleError(f"{path / NEIGHBOURS_FILE}: an item that is not in the catalogue; {REBUILD}")
    if not (weights > 0).all() or not np.isfinite(weights).all():
        raise BundleError(f"{path / WEIGHTS_FILE}: a weight that is no number above 0; {REBUILD}")
    popularity = array(RECENT_FILE, np.float32, manifest.items)
    if not ((popularity >= 0) & (popularity <= 1)).all():
        raise BundleError(f"{path / RECENT_FILE}: a share outside of 0 to 1; {REBUILD}")
    return Counting(offsets, neighbours, weights, popularity, info.window, info.decay, LiveCounts(events, info))


def _text_encoder(path: Path, manifest: Manifest, read: Callable[[str], bytes]) -> TextEncoder | None:
    info = manifest.text
    if info is None:
        return None

    def array(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return as_array(path / name, read(name), np.dtype(dtype), shape)

    keys = array(TEXT_KEYS_FILE, np.uint32, info.features)
    if not (keys[1:] > keys[:-1]).all():
        raise BundleError(f"{path / TEXT_KEYS_FILE}: does not ascend; {REBUILD}")
    weights = array(TEXT_WEIGHTS_FILE, np.float32, info.features)
    if not (weights > 0).all() or (weights > _LARGEST_ENTROPY).any():
        raise BundleError(f"{path / TEXT_WEIGHTS_FILE}: a weight that is no number above 0; {REBUILD}")
    projection = array(PROJECTION_FILE, np.float16, info.features + 1, manifest.model.width)
    if not np.isfinite(projection).all():
        raise BundleError(f"{path / PROJECTION_FILE}: a value that is no number; {REBUILD}")
    return TextEncoder(keys, weights, projection)
