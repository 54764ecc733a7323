"""Opens a Bundle: whole, or refused with an error that says which file is wrong and what to do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fathom.errors import (
    ArtefactError,
    BundleEditedError,
    BundleError,
    BundleMissingFileError,
    BundleSchemaError,
    NotFoundError,
    brief,
)
from fathom.files import parse_json
from fathom.runtime.bundle_folder import (
    REBUILD,
    as_array,
    as_object,
    check_nothing_else,
    check_unread,
    read_listed,
    read_regular,
)
from fathom.runtime.counting import Counting
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.live_counts import LiveCounts
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CERTIFICATE_FILE,
    CHANGES_FILE,
    COUNTING_FILES,
    INDEX_FILE,
    MANIFEST_NAME,
    NEIGHBOURS_FILE,
    OFFSETS_FILE,
    POPULARITY_FILE,
    PROJECTION_FILE,
    RECENT_FILE,
    SCHEMA_VERSION,
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
    version_of,
)
from fathom.runtime.manifest_rules import first_broken_rule
from fathom.runtime.request_time import BUCKETS, RequestTime, read_request_time
from fathom.runtime.signature import Trust
from fathom.runtime.text_encoder import TextEncoder
from fathom.selector.certificate import Certificate
from fathom.selector.complexity import Complexity, read_complexity
from fathom.selector.features import Features, SelectorTables, measure, measure_brief

#: Files that opening reads, and so checks, in any case.
READ_AT_OPEN = {
    CATALOGUE_FILE,
    VECTORS_FILE,
    POPULARITY_FILE,
    TRANSITIONS_FILE,
    SELECTOR_FILE,
    CERTIFICATE_FILE,
    CHANGES_FILE,
    *COUNTING_FILES,
    *TEXT_FILES,
}
#: Bytes that the files of a bundle can have at most; an ONNX file holds no more than 2 GB.
_LARGEST_MANIFEST = 16 << 20
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


@dataclass(frozen=True)
class Catalogue:
    """The items of a bundle by index 0..n-1; an unknown title is the empty string."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """External id -> item index."""
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def category_items(self) -> dict[str, NDArray[np.int32]]:
        """Category -> the indices of its items, ascending."""
        members: dict[str, list[int]] = {}
        for i, names in enumerate(self.categories):
            for name in names:
                members.setdefault(name, []).append(i)
        return {name: np.array(items, dtype=np.int32) for name, items in members.items()}

    def category_mask(self, categories: Iterable[str]) -> NDArray[np.bool_]:
        """True, shape (n,), for the items of at least one of these categories; NotFoundError for an unknown one."""
        mask = np.zeros(len(self.ids), dtype=np.bool_)
        for name in categories:
            items = self.category_items.get(name)
            if items is None:
                raise NotFoundError(f"no item of this catalogue has the category {name!r}")
            mask[items] = True
        return mask

    def attribute(self, name: str) -> NDArray[np.float64] | None:  # noqa: ARG002
        """None: a bundle knows no numbers of its items."""
        return None


@dataclass(frozen=True)
class Check:
    """One line of ``fathom bundle verify``: a file (or the manifest itself), and what is wrong with it if anything."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: everything the online half needs, already checked; arrays are read-only.

    ``popularity``: int64 (n,), training counts. ``tables`` and
    ``complexity`` are what the selector needs. ``certificate``: None where the bundle was not certified.
    ``counting``: depth 0, None where it has none. ``text_encoder``: places new items by their texts, None without one.
    ``request_time``: what the time of a request changes, None where nothing.
    """

    path: Path
    manifest: Manifest
    catalogue: Catalogue
    vectors: ItemVectors
    popularity: NDArray[np.int64]
    tables: SelectorTables
    complexity: Complexity
    certificate: Certificate | None
    counting: Counting | None
    text_encoder: TextEncoder | None
    request_time: RequestTime | None

    @classmethod
    def open(
        cls, path: Path, *, verify: bool = True, trust: Trust | None = None, with_certificate: bool = True
    ) -> Self:
        """Open a bundle folder; ``verify=False`` leaves out the sha256 of what is not read here, as of engines.

        ``trust``: the keys of which one must have signed it. ``with_certificate=False``: as if it had none, for a
        caller about to replace it.

        Raises BundleMissingFileError, BundleTruncatedError, BundleEditedError, BundleSchemaError (not a manifest,
        or newer than this Fathom), BundleSignatureError or BundleError (something in the folder that the manifest does
        not list, or contents that contradict it); each is one line.
        """
        path = Path(path)
        manifest = read_manifest(path, trust)
        check_nothing_else(path, manifest.files)
        try:
            for name, entry in manifest.files.items():
                check_size(path, name, entry, manifest)
                check_unread(path, name, entry)
                if verify and name not in READ_AT_OPEN:
                    read_listed(path, name, entry)
            return cls(path, manifest, *_read_contents(path, manifest, with_certificate=with_certificate))
        except MemoryError:
            raise BundleError(f"{path}: opening it takes more memory than there is; {REBUILD}") from None

    def inspect(
        self, items: NDArray[np.integer], timestamps: NDArray[np.int64] | None, *, brief: bool = False
    ) -> tuple[Features, float]:
        """A history's features and complexity, 0 to 1, from its items (n,) and seconds (n,), oldest first.

        ``brief``: features that the complexity does not need may be left unknown, which takes half the time.
        """
        found = (measure_brief if brief and self.complexity.is_brief else measure)(items, timestamps, self.tables)
        return found, self.complexity.score(found)

    def read(self, name: str) -> bytes:
        """A file that the manifest lists, by its path in the folder: the very bytes that were checked.

        Raises as ``open`` does where it has changed since.
        """
        return read_listed(self.path, name, self.manifest.files[name])

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that this bundle holds engines for, ascending."""
        return tuple(sorted(self.manifest.depths))

    def segments(self, depth: int) -> tuple[str, ...]:
        """The engine files that depth runs, one after the other: paths in the folder, as ``read`` takes them."""
        return self.manifest.depths[depth].segments

    def close(self) -> None:
        """Nothing stays open: every file is read when the bundle is opened. Here for ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_manifest(path: Path, trust: Trust | None = None) -> Manifest:
    """Read and check ``manifest.json`` of a bundle folder, without opening any other file but its signature.

    ``trust``: the keys of which one must have signed it. Raises BundleMissingFileError, BundleSchemaError,
    BundleEditedError, BundleSignatureError or BundleError.
    """
    data = read_manifest_bytes(path)
    if trust is not None:
        trust.check(path, data)
    return parse_manifest(path / MANIFEST_NAME, data)


def read_manifest_bytes(path: Path) -> bytes:
    """``manifest.json`` of a bundle folder, unchecked; raises BundleMissingFileError or BundleError."""
    try:
        return read_regular(path / MANIFEST_NAME, _LARGEST_MANIFEST)
    except BundleMissingFileError:
        raise BundleMissingFileError(f"{path}: no bundle here: {MANIFEST_NAME} is missing") from None


def parse_manifest(file: Path, data: bytes) -> Manifest:
    """The manifest in these bytes of a file, checked; raises BundleSchemaError or BundleEditedError."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise BundleSchemaError(f"{file}: not a manifest: {brief(error, 100)}; {REBUILD}") from None
    schema = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleSchemaError(f"{file}: not a manifest: it has no schema_version; {REBUILD}")
    if schema > SCHEMA_VERSION:
        raise BundleSchemaError(
            f"{file}: written by a newer Fathom (schema_version {brief(schema)}, this one reads {SCHEMA_VERSION}); "
            "upgrade Fathom"
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = brief(".".join(map(str, first["loc"])))
        raise BundleSchemaError(f"{file}: not a manifest: {where}: {brief(first['msg'], 120)}; {REBUILD}") from None
    if (words := first_broken_rule(manifest)) is not None:
        raise BundleSchemaError(f"{file}: not a manifest: {words}; {REBUILD}")
    if manifest.version != (version := version_of(value)):
        raise BundleEditedError(
            f"{file}: version is '{brief(manifest.version)}' but the manifest makes '{version}'; {REBUILD}"
        )
    return manifest


def verify(path: Path, trust: Trust | None = None) -> list[Check]:
    """Every check of a bundle with its result; never stops at the first failure, never raises for a bad bundle.

    ``trust``: the keys of which one must have signed it.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path, trust)
    except BundleError as error:
        return [Check(MANIFEST_NAME, False, str(error))]
    checks = [Check(MANIFEST_NAME, True, f"schema {manifest.schema_version}, version {manifest.version}")]

    def check(name: str, work: Callable[[], object], words: str) -> None:
        try:
            work()
            checks.append(Check(name, True, words))
        except BundleError as error:
            checks.append(Check(name, False, str(error)))

    check("folder", partial(check_nothing_else, path, manifest.files), "nothing but what the manifest lists")
    for name, entry in manifest.files.items():
        words = f"{entry.bytes} bytes, sha256 {entry.sha256[:12]}"
        check(name, partial(_check_file, path, name, entry, manifest), words)
    if all(check.ok for check in checks):
        words = f"{manifest.items} items, depths {list(manifest.served_depths)}"
        check("contents", partial(Bundle.open, path, verify=False), words)
    return checks


def _check_file(path: Path, name: str, entry: FileEntry, manifest: Manifest) -> None:
    check_size(path, name, entry, manifest)
    read_listed(path, name, entry)


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
        **_text_limits(manifest),
    }
    most = limits.get(name, _LARGEST_ENGINE)
    if entry.bytes > most:
        raise BundleError(f"{path / brief(name)}: {entry.bytes} bytes, at most {most} are possible; {REBUILD}")


def _index_limit(manifest: Manifest) -> int:
    lists = 0 if manifest.retrieval is None else manifest.retrieval.lists
    vector = 4 * manifest.model.width
    return _LARGEST_JSON + manifest.items * (vector + _INDEX_OF_AN_ITEM) + lists * (vector + _INDEX_OF_A_LIST)


def _text_limits(manifest: Manifest) -> dict[str, int]:
    features = 0 if manifest.text is None else manifest.text.features
    sizes = {TEXT_KEYS_FILE: 4 * features, TEXT_WEIGHTS_FILE: 4 * features}
    sizes[PROJECTION_FILE] = 2 * (features + 1) * manifest.model.width
    return {name: _NPY_HEADER + size for name, size in sizes.items()}


_Contents = tuple[
    Catalogue,
    ItemVectors,
    NDArray[np.int64],
    SelectorTables,
    Complexity,
    Certificate | None,
    Counting | None,
    TextEncoder | None,
    RequestTime | None,
]


def _read_contents(path: Path, manifest: Manifest, *, with_certificate: bool) -> _Contents:
    """Everything in a bundle but its engines, checked against the manifest and against each other."""

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
    moves = read_request_time(path, manifest, read)
    return catalogue, vectors, popularity, tables, selector, certificate, counting, encoder, moves


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
