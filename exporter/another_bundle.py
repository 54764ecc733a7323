"""What all that make a bundle out of a bundle have in common."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from fathom.errors import ConfigError


def refuse_same_folder(source: Path, out: Path) -> None:
    """Raise ConfigError where the new bundle would take the place of its source."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: a bundle cannot replace the one that it is made from; choose another folder")


def copy_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy these files of a bundle, by their paths in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
