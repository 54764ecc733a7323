"""Where a server's bundles are: one bundle's folder, or a folder of names with numbered versions below them."""

from pathlib import Path

from fathom.errors import BundleError, BundleMissingFileError
from fathom.runtime.bundle import read_manifest
from fathom.runtime.manifest import MANIFEST_NAME

#: What changes when anything in a folder does: (file, bytes, time of change) of all its files.
State = tuple[tuple[str, int, int], ...]


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
        if (self.path / MANIFEST_NAME).exists():
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
    numbered = [each for each in folder.iterdir() if each.name.isdecimal() and (each / MANIFEST_NAME).exists()]
    return max(numbered, key=lambda each: int(each.name), default=None)


def state_of(path: Path) -> State:
    """What is in a bundle's folder, without reading it; raises BundleError when it cannot be looked at."""
    try:
        files = [(str(each), each.stat()) for each in sorted(path.rglob("*")) if each.is_file()]
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
