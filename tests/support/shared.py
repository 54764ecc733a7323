"""What takes long to make is made once for all the processes that run tests, or for later runs too."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the tests that all its processes know."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A new folder that ``make`` fills in the first process that asks for it; later ones wait, and read it.

    Nobody may write there afterwards.
    """
    return _filled(common_folder(factory) / f"shared-{name}", make)


def kept(request: pytest.FixtureRequest, name: str, about: bytes, make: Callable[[Path], object]) -> Path:
    """The same, but in pytest's cache, where later runs find it as long as ``about``, what it is made of, is the same.

    For what is fetched; what `fathom` makes is made anew in each run.
    """
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    base = cache.mkdir("fathom") if cache else common_folder(request.getfixturevalue("tmp_path_factory"))
    return _filled(base / f"{name}-{sha256(about).hexdigest()[:12]}", make)


def npm_packages(request: pytest.FixtureRequest, example: Path) -> Path:
    """The ``node_modules`` of an example, kept; skips where npm cannot install them."""
    files = sorted(example.glob("package*.json"))

    def make(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install the packages: {installed.stderr[-200:]}")

    return kept(request, f"npm-{example.name}", b"".join(file.read_bytes() for file in files), make) / "node_modules"


def _filled(folder: Path, make: Callable[[Path], object]) -> Path:
    made = folder.with_name(f"{folder.name}.made")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what was begun and never ended
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
