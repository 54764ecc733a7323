"""What all that make a bundle out of a bundle have in common."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fathom.artefacts import BUNDLE, real
from fathom.errors import ConfigError, ParityError
from fathom.files import new_folder, sha256_bytes, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.engine import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest, sealed

log = logging.getLogger("fathom.exporter")

_CHECKED_LENGTHS = (1, 2, 7, 50, 200)


def refuse_same_folder(source: Path, out: Path) -> None:
    """Raise ConfigError where the new bundle would take the place of its source."""
    if real(out) == real(source):
        raise ConfigError(f"{out}: a bundle cannot replace the one that it is made from; choose another folder")


def copy_files(source: Bundle, folder: Path, names: Iterable[str]) -> None:
    """Copy these files of a bundle, by their paths in it, each checked as it is read; a signature stays behind."""
    if (source.path / SIGNATURE_NAME).exists():
        log.warning("%s: its signature does not hold for the new bundle; sign that one", source.path)
    for name in names:
        write_file(folder, name, source.read(name))


def write_file(folder: Path, name: str, data: bytes) -> FileEntry:
    """Write one file of a new bundle; returns its entry in the manifest."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return FileEntry(bytes=len(data), sha256=sha256_bytes(data))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal and write the manifest of a new bundle, whose files are written; returns it as it was written."""
    made = sealed(manifest)
    write_json(folder / MANIFEST_NAME, made.model_dump(mode="json"))
    return made


def rewrite(bundle: Bundle, changes: Mapping[str, object], new: Mapping[str, bytes] | None = None) -> Manifest:
    """Put a bundle with other keys in its manifest, and ``new`` files, in place of this one, whole or not at all."""
    home = real(bundle.path)  # a link to the folder stays one
    new = new or {}
    with new_folder(home, BUNDLE) as folder:
        copy_files(bundle, folder, bundle.manifest.files.keys() - new.keys())
        entries = {name: write_file(folder, name, data) for name, data in new.items()}
        files = dict(sorted({**bundle.manifest.files, **entries}.items()))
        made = write_manifest(folder, bundle.manifest.model_copy(update={**changes, "files": files}))
        Bundle.open(folder).close()
    return made


def lasting_files(source: Path, manifest: Manifest) -> dict[str, FileEntry]:
    """The files of a bundle but for its certificate and its TensorRT plans, which hold for the engines that they have.

    Raises ConfigError where the engines are not ONNX: nothing is made out of others.
    """
    if manifest.format != "onnx":
        raise ConfigError(f"{source}: its engines are {manifest.format}; only onnx can be converted")
    plans = {file for plan in manifest.plans for file in plan.segments.values()}
    return {name: entry for name, entry in manifest.files.items() if name not in {CERTIFICATE_FILE, *plans}}


def check_same_answers(source: Bundle, made: Bundle, most: float) -> None:
    """Raise ParityError where a user vector for a random history is off by more than this."""
    rng = np.random.default_rng(0)
    with open_engine(source, device="cpu") as before, open_engine(made, device="cpu") as after:
        for length in _CHECKED_LENGTHS:
            items = rng.integers(1, source.manifest.items + 1, (2, min(length, source.manifest.model.max_history)))
            times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
            for depth in before.depths:
                error = np.abs(before.run(items, times, depth) - after.run(items, times, depth)).max()
                if not error <= most:
                    raise ParityError(f"depth {depth}: the converted engine is off by {error:.2g}; convert it again")
