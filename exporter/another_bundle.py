"""What all that make a bundle out of a bundle have in common."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fathom.errors import ConfigError, ParityError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engine import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, FileEntry, Manifest

_CHECKED_LENGTHS = (1, 2, 7, 50, 200)


def refuse_same_folder(source: Path, out: Path) -> None:
    """Raise ConfigError where the new bundle would take the place of its source."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: a bundle cannot replace the one that it is made from; choose another folder")


def copy_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy these files of a bundle, by their paths in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


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
