"""Writes a bundle out of files, or out of another bundle; whole or not at all."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fathom.artefacts import BUNDLE, real
from fathom.errors import ConfigError, ParityError
from fathom.files import new_folder, sha256_bytes, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest, sealed

log = logging.getLogger("fathom.exporter")

#: Items of the histories that a converted bundle is checked with, as far as its model takes so many.
CHECKED_LENGTHS = (1, 2, 7, 50, 200)

Files = Iterable[tuple[str, bytes]]
"""Paths in a bundle and what is in them."""


@contextmanager
def open_source(source: Path, out: Path) -> Iterator[Bundle]:
    """The bundle that another one, ``out``, is made from.

    Raises ConfigError where the new one would take its place, and BundleError where it is refused.
    """
    if real(out) == real(source):
        raise ConfigError(f"{out}: a bundle cannot replace the one that it is made from; choose another folder")
    with Bundle.open(source) as bundle:
        yield bundle


def derive_bundle(
    source: Bundle,
    out: Path,
    new: Mapping[str, bytes] | None = None,
    /,
    *,
    drop: Collection[str] = (),
    largest_error: float | None = None,
    **changes: Any,
) -> Manifest:
    """Write to ``out`` a bundle with the files of ``source`` but for ``drop``, and ``new`` ones; return its manifest.

    ``changes``: keys of the manifest that differ. ``largest_error``: of a user vector of the new engines, measured
    against the source's on the CPU; None where engines stay the same. What is copied is checked as it is read; a
    signature stays behind. Raises BundleError for a file that has changed since the source was opened, ParityError.
    """
    new = new or {}

    def check(made: Bundle) -> None:
        if largest_error is not None:
            check_same_answers(source, made, largest_error)

    kept = [name for name in source.manifest.files if name not in new and name not in drop]
    files = chain(read_files(source, kept), new.items())
    return write_bundle(out, source.manifest.model_copy(update=changes), files, check)


def rewrite(bundle: Bundle, new: Mapping[str, bytes] | None = None, /, **changes: Any) -> Manifest:
    """``derive_bundle`` in place of the bundle itself."""
    return derive_bundle(bundle, real(bundle.path), new, **changes)  # a link to the folder stays one


def write_bundle(
    out: Path, manifest: Manifest, files: Files, check: Callable[[Bundle], None] = lambda _: None
) -> Manifest:
    """Write a bundle folder, and return its manifest as written: with the files listed, and sealed.

    ``check`` is called with the bundle, opened, before it takes its name; what it or the runtime refuses never does.
    """
    with new_folder(out, BUNDLE) as folder:
        entries = write_files(folder, files)
        made = sealed(manifest.model_copy(update={"files": dict(sorted(entries.items()))}))
        write_json(folder / MANIFEST_NAME, made.model_dump(mode="json"))
        with Bundle.open(folder) as bundle:
            check(bundle)
    return made


def read_files(source: Bundle, names: Iterable[str]) -> Files:
    """Files of a bundle for a new one, each checked as it is read; logs that a signature does not hold for that."""
    if (source.path / SIGNATURE_NAME).exists():
        log.warning("%s: its signature does not hold for the new bundle; sign that one", source.path)
    return ((name, source.read(name)) for name in names)


def write_files(folder: Path, files: Files) -> dict[str, FileEntry]:
    """Write these files into the folder of a new bundle; returns their entries in the manifest."""
    entries = {}
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        entries[name] = FileEntry(bytes=len(data), sha256=sha256_bytes(data))
    return entries


def bound_to_engines(source: Bundle) -> set[str]:
    """The files that hold for the very engines that a bundle has: its certificate, and its TensorRT plans.

    Raises ConfigError where the engines are not ONNX, which is all that can be converted.
    """
    manifest = source.manifest
    if manifest.format != "onnx":
        raise ConfigError(f"{source.path}: its engines are {manifest.format}; only onnx can be converted")
    return {CERTIFICATE_FILE, *(file for plan in manifest.plans for file in plan.segments.values())}


def random_histories(
    manifest: Manifest, rng: Generator, *, rows: int, lengths: Sequence[int] = CHECKED_LENGTHS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Input ids and seconds, (rows, length), for each of these lengths, as far as the model takes so many items."""
    for length in lengths:
        items = rng.integers(1, manifest.items + 1, (rows, min(length, manifest.model.max_history)))
        yield items, 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)


def check_same_answers(source: Bundle, made: Bundle, largest_error: float) -> None:
    """Raise ParityError where a user vector for a random history is off by more than this."""
    with open_engine(source, device="cpu") as before, open_engine(made, device="cpu") as after:
        for items, times in random_histories(source.manifest, np.random.default_rng(0), rows=2):
            for depth in before.depths:
                error = np.abs(before.run(items, times, depth) - after.run(items, times, depth)).max()
                if not error <= largest_error:
                    raise ParityError(f"depth {depth}: the converted engine is off by {error:.2g}; convert it again")
