"""Where a server's bundles are: one bundle's folder, or a folder of names with numbered versions below them."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fathom.errors import BundleError, BundleMissingFileError, brief
from fathom.runtime.manifest import MANIFEST_NAME
from fathom.runtime.manifest_file import read_manifest

#: What changes when anything in a folder does: (name, kind and rights, bytes, time of change) of all that is in it.
#: That time nobody can set back, as copies of archives do with the time of writing.
State = tuple[tuple[str, int, int, int], ...]

_NUMBER = re.compile(r"[0-9]+")
_LONGEST_NAME = 200

log = logging.getLogger("fathom.serving")


class Repository:
    """``PATH/manifest.json``: one bundle, under its own name. ``PATH/NAME/NUMBER/manifest.json``: the highest number.

    A folder without a manifest or with another name than a number is not there yet, so a version is published by
    copying it to ``NAME/new`` and renaming that to ``NAME/7``, and taken back by removing it. A folder that cannot be
    read, or whose name is not printable, is skipped with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._only: str | None = None
        self._passed_by: set[Path] = set()

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
        newest = {each.name: self._newest(each) for each in sorted(self.path.iterdir()) if each.is_dir()}
        found = {name: path for name, path in newest.items() if path is not None}
        if not found:
            raise BundleMissingFileError(
                f"{self.path}: no bundle here: neither {MANIFEST_NAME} nor NAME/NUMBER/{MANIFEST_NAME}"
            )
        return found

    def _newest(self, folder: Path) -> Path | None:
        try:
            numbered = [each for each in folder.iterdir() if _NUMBER.fullmatch(each.name)]
        except OSError as error:
            self._pass_by(folder, f"cannot be read: {error.strerror}")
            return None
        there = [each for each in numbered if os.path.lexists(each / MANIFEST_NAME)]
        if there and not (folder.name.isprintable() and len(folder.name) <= _LONGEST_NAME):
            self._pass_by(folder, f"a bundle's name is printable and of at most {_LONGEST_NAME} characters")
            return None
        return max(there, key=lambda each: (int(each.name), each.name), default=None)

    def _pass_by(self, folder: Path, why: str) -> None:
        """Skip a folder that cannot hold a bundle, so that the others are still served; warn once."""
        if folder not in self._passed_by:
            self._passed_by.add(folder)
            log.warning("%s: '%s' is skipped: %s", self.path, brief(folder.name), why)


def state_of(path: Path) -> State:
    """What is in a bundle's folder, without opening any of it; empty where that cannot be told: opening says why."""
    try:
        return tuple(sorted(_states(os.path.realpath(path))))
    except OSError:
        return ()


def _states(path: str) -> Iterator[tuple[str, int, int, int]]:
    ahead = [path]
    while ahead:
        with os.scandir(ahead.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status.st_mode, status.st_size, status.st_ctime_ns
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(entry.path)
