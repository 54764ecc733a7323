"""Where a server's bundles are: one bundle's folder, or a folder of names with numbered versions below them."""

import os
from collections.abc import Iterator
from pathlib import Path

from fathom.errors import BundleError, BundleMissingFileError
from fathom.runtime.bundle import read_manifest
from fathom.runtime.manifest import MANIFEST_NAME

#: What changes when anything in a folder does: (name, kind and rights, bytes, time of change) of all that is in it.
State = tuple[tuple[str, int, int, int], ...]


class Repository:
    """``PATH/manifest.json``: one bundle, under its own name. ``PATH/NAME/NUMBER/manifest.json``: the highest number.

    A folder without a manifest or with another name than a number is not there yet, so a version is published by
    copying it to ``NAME/new`` and renaming that to ``NAME/7``, and taken back by removing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._only: str | None = None

    def find(self) -> dict[str, Path]:
        """The folder to serve for each name; raises BundleError when there is none."""
        try:
            return self._find()
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _find(self) -> dict[str, Path]:
        if os.path.lexists(self.path / MANIFEST_NAME):
            # The name stays, even when the folder's next bundle calls itself something else.
            self._only = self._only or read_manifest(self.path).name
            return {self._only: self.path}
        if not self.path.is_dir():
            raise BundleMissingFileError(f"{self.path}: no bundle here: no such folder")
        newest = {each.name: _newest(each) for each in sorted(self.path.iterdir()) if each.is_dir()}
        found = {name: path for name, path in newest.items() if path is not None}
        if not found:
            raise BundleMissingFileError(
                f"{self.path}: no bundle here: neither {MANIFEST_NAME} nor NAME/NUMBER/{MANIFEST_NAME}"
            )
        return found


def _newest(folder: Path) -> Path | None:
    numbered = [each for each in folder.iterdir() if each.name.isdecimal() and os.path.lexists(each / MANIFEST_NAME)]
    return max(numbered, key=lambda each: int(each.name), default=None)


def state_of(path: Path) -> State:
    """What is in a bundle's folder, without opening any of it; raises BundleError when it cannot be looked at."""
    try:
        return tuple(sorted(_states(path.resolve())))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None


def _states(path: Path) -> Iterator[tuple[str, int, int, int]]:
    with os.scandir(path) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield entry.path, status.st_mode, status.st_size, status.st_mtime_ns
            if entry.is_dir(follow_symlinks=False):
                yield from _states(Path(entry.path))
