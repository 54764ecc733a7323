"""Bundle: opened whole, or refused with an error that says which file is wrong and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError
from fathom.runtime.bundle_contents import READ_AT_OPEN, check_size, read_contents
from fathom.runtime.bundle_folder import REBUILD, check_nothing_else, check_unread, read_listed
from fathom.runtime.catalogue import Catalogue
from fathom.runtime.context import Context
from fathom.runtime.counting import Counting
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import MANIFEST_NAME, FileEntry, Manifest
from fathom.runtime.manifest_file import read_manifest
from fathom.runtime.request_time import RequestTime
from fathom.runtime.signature import Trust
from fathom.runtime.text_encoder import TextEncoder
from fathom.selector.certificate import Certificate
from fathom.selector.complexity import Complexity
from fathom.selector.features import Features, SelectorTables, measure, measure_brief


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: everything the online half needs, already checked; arrays are read-only.

    ``popularity``: int64 (n,), training counts. ``tables`` and
    ``complexity`` are what the selector needs. ``certificate``: None where the bundle was not certified.
    ``counting``: depth 0, None where it has none. ``text_encoder``: places new items by their texts, None without one.
    ``request_time``: what the time of a request changes, None where nothing. ``context``: what its context changes,
    None where a request may give none.
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
    context: Context | None

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
            return cls(path, manifest, *read_contents(path, manifest, with_certificate=with_certificate))
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


@dataclass(frozen=True)
class Check:
    """One line of ``fathom bundle verify``: a file (or the manifest itself), and what is wrong with it if anything."""

    name: str
    ok: bool
    detail: str


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
