"""Opens a Bundle: whole, or refused with an error that says which file is wrong and what to do."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
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
    BundleTruncatedError,
    NotFoundError,
)
from fathom.files import sha256_file
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CERTIFICATE_FILE,
    MANIFEST_NAME,
    POPULARITY_FILE,
    SCHEMA_VERSION,
    SELECTOR_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    FileEntry,
    Manifest,
    bundle_version,
)
from fathom.selector.certificate import Certificate
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import SelectorTables

_REBUILD = "export or copy the bundle again"


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
    """

    path: Path
    manifest: Manifest
    catalogue: Catalogue
    vectors: ItemVectors
    popularity: NDArray[np.int64]
    tables: SelectorTables
    complexity: ComplexityModel
    certificate: Certificate | None

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Self:
        """Open a bundle folder; ``verify=False`` leaves out the sha256 of each file, all other checks stay.

        Raises BundleMissingFileError, BundleTruncatedError, BundleEditedError, BundleSchemaError (not a manifest,
        or newer than this Fathom) or BundleError (a path that leaves the folder, or contents that contradict the
        manifest); each is one line.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            _check_file(path, name, entry, verify=verify)
        catalogue = _read_catalogue(path / CATALOGUE_FILE)
        width = manifest.model.width
        kind = ItemVectors.type_of(manifest.item_precision)
        vectors = ItemVectors(_read_array(path / VECTORS_FILE, kind, (manifest.items, width)))
        popularity = _read_array(path / POPULARITY_FILE, np.dtype(np.int64), (manifest.items,))
        _check_contents(path, manifest, catalogue, vectors, popularity)
        transitions = _read_array(path / TRANSITIONS_FILE, np.dtype(np.float32), (manifest.items,))
        if np.isinf(transitions).any() or (transitions < 0).any():
            raise BundleError(f"{path / TRANSITIONS_FILE}: an entropy that is negative or infinite; {_REBUILD}")
        tables = SelectorTables.build(popularity, vectors, transitions)
        complexity = _read_selector(path / SELECTOR_FILE)
        certificate = _read_certificate(path, manifest)
        return cls(path, manifest, catalogue, vectors, popularity, tables, complexity, certificate)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that this bundle holds engines for, ascending."""
        return tuple(sorted(self.manifest.depths))

    def segments(self, depth: int) -> tuple[Path, ...]:
        """The engine files that depth runs, one after the other."""
        return tuple(self.path / name for name in self.manifest.depths[depth].segments)

    def close(self) -> None:
        """Nothing stays open: every file is read when the bundle is opened. Here for ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(path: Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle folder, without opening any other file.

    Raises BundleMissingFileError, BundleSchemaError or BundleEditedError.
    """
    file = path / MANIFEST_NAME
    try:
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleMissingFileError(f"{path}: no bundle here: {MANIFEST_NAME} is missing") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleSchemaError(f"{file}: not a manifest: {error}; {_REBUILD}") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleSchemaError(f"{file}: not a manifest: it has no schema_version; {_REBUILD}")
    if version > SCHEMA_VERSION:
        raise BundleSchemaError(
            f"{file}: written by a newer Fathom (schema_version {version}, this one reads {SCHEMA_VERSION}); "
            "upgrade Fathom"
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleSchemaError(f"{file}: not a manifest: {where}: {first['msg']}; {_REBUILD}") from None
    _check_listing(file, manifest)
    return manifest


def verify(path: Path) -> list[Check]:
    """Every check of a bundle with its result; never stops at the first failure, never raises for a bad bundle."""
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except BundleError as error:
        return [Check(MANIFEST_NAME, False, str(error))]
    checks = [Check(MANIFEST_NAME, True, f"schema {manifest.schema_version}, version {manifest.version}")]
    for name, entry in manifest.files.items():
        try:
            _check_file(path, name, entry, verify=True)
            checks.append(Check(name, True, f"{entry.bytes} bytes, sha256 {entry.sha256[:12]}"))
        except BundleError as error:
            checks.append(Check(name, False, str(error)))
    if all(check.ok for check in checks):
        try:
            Bundle.open(path, verify=False)
            checks.append(Check("contents", True, f"{manifest.items} items, depths {sorted(manifest.depths)}"))
        except BundleError as error:
            checks.append(Check("contents", False, str(error)))
    return checks


def _check_listing(file: Path, manifest: Manifest) -> None:
    """The manifest lists every file that will be used, and its version follows from that list."""
    if not manifest.depths or manifest.items < 1:
        raise BundleSchemaError(f"{file}: not a manifest: it has no depths or no items; {_REBUILD}")
    used = [CATALOGUE_FILE, VECTORS_FILE, POPULARITY_FILE, TRANSITIONS_FILE, SELECTOR_FILE]
    for depth, info in manifest.depths.items():
        if not info.segments:
            raise BundleSchemaError(f"{file}: not a manifest: depth {depth} has no segments; {_REBUILD}")
        used += info.segments
    if manifest.extension is not None:
        used += [manifest.extension.context, *manifest.extension.segments.values()]
        if not set(manifest.depths) <= set(manifest.extension.segments):
            raise BundleSchemaError(f"{file}: not a manifest: its extension lacks a depth; {_REBUILD}")
    engines = {name for info in manifest.depths.values() for name in info.segments}
    for plan in manifest.plans:
        used += [*plan.built_from, *plan.segments.values()]
        if not engines <= set(plan.segments):
            raise BundleSchemaError(f"{file}: not a manifest: a TensorRT plan lacks an engine; {_REBUILD}")
    for name in used:
        if name not in manifest.files:
            raise BundleSchemaError(f"{file}: not a manifest: it does not list {name}; {_REBUILD}")
    version = bundle_version(manifest.files)
    if manifest.version != version:
        raise BundleEditedError(
            f"{file}: version is {manifest.version!r} but its list of files makes {version!r}; {_REBUILD}"
        )


def _check_file(root: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    pure = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{root}: the manifest lists {name!r}, which leaves the bundle's folder; do not use it")
    file = root / name
    # resolve() also follows symbolic links, so a link to the outside is found here.
    if not file.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{file}: a link that leaves the bundle's folder; replace it by the file itself")
    if not file.is_file():
        raise BundleMissingFileError(f"{file}: missing; {_REBUILD}")
    size = file.stat().st_size
    if size != entry.bytes:
        raise BundleTruncatedError(f"{file}: {size} bytes where the manifest says {entry.bytes}; {_REBUILD}")
    if verify and sha256_file(file) != entry.sha256:
        raise BundleEditedError(f"{file}: its sha256 differs from the manifest; {_REBUILD}")


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON: {error}; {_REBUILD}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{file}: not a JSON object; {_REBUILD}")
    return value


def _read_catalogue(file: Path) -> Catalogue:
    value = _read_json(file)
    try:
        return Catalogue(
            ids=tuple(value["ids"]),
            titles=tuple(value["titles"]),
            categories=tuple(map(tuple, value["categories"])),
        )
    except (KeyError, TypeError):
        raise BundleError(f"{file}: needs the lists ids, titles and categories; {_REBUILD}") from None


def _read_array(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    # Loaded, not mapped: a file that is overwritten in place would kill a process that has it mapped.
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"{file}: not an array: {error}; {_REBUILD}") from None
    if array.dtype != dtype or array.shape != shape:
        raise BundleError(f"{file}: {array.dtype} {array.shape} where {dtype} {shape} is needed; {_REBUILD}")
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def _read_selector(file: Path) -> ComplexityModel:
    try:
        return ComplexityModel.from_json(_read_json(file), where=str(file))
    except ArtefactError as error:
        raise BundleError(str(error)) from None


def _read_certificate(path: Path, manifest: Manifest) -> Certificate | None:
    """The certificate, if there is one; a promise about other files than these is refused."""
    if CERTIFICATE_FILE not in manifest.files:
        return None
    try:
        certificate = Certificate.load(path / CERTIFICATE_FILE)
    except ArtefactError as error:
        raise BundleError(str(error)) from None
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
    if (other := certificate.differing(files)) is not None:
        raise BundleError(f"{path / CERTIFICATE_FILE}: certifies another {other}; run `fathom certify` on this bundle")
    return certificate


def _check_contents(
    path: Path,
    manifest: Manifest,
    catalogue: Catalogue,
    vectors: ItemVectors,
    popularity: NDArray[np.int64],
) -> None:
    file = path / CATALOGUE_FILE
    lengths = {len(catalogue.ids), len(catalogue.titles), len(catalogue.categories)}
    if lengths != {manifest.items}:
        raise BundleError(
            f"{file}: lists of length {sorted(lengths)} where {manifest.items} items are needed; {_REBUILD}"
        )
    if len(catalogue.index) != manifest.items:
        raise BundleError(f"{file}: an id occurs twice; {_REBUILD}")
    # One sum is NaN or infinite when any element is; norms are what make a score a cosine.
    if vectors.scales is None:
        squares = np.einsum("ij,ij->i", vectors.rows, vectors.rows, dtype=np.float32)
        sound = bool(np.all(np.abs(np.sqrt(squares) - 1) < 1e-2))
    else:
        sound = bool(np.all(np.isfinite(vectors.scales)))
    if not sound:
        raise BundleError(f"{path / VECTORS_FILE}: rows are not unit vectors; {_REBUILD}")
    if popularity.size and popularity.min() < 0:
        raise BundleError(f"{path / POPULARITY_FILE}: a negative count; {_REBUILD}")
