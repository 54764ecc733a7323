"""A Python environment for each peer, with what it needs in the versions that work together.

An environment is made once, below build/peers, whole or not at all; one whose requirements have changed is made anew.
Fathom's source is not installed there: whoever starts a program in it puts it on the path.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fathom
from fathom.errors import UnavailableError

ENVIRONMENTS = Path("build/peers")
#: Seconds that pip may take.
MOST_S = 900
_MADE = "made.json"


@dataclass(frozen=True)
class Requirements:
    """Lines for pip. ``files``: packages of which only the files are wanted, put into the folder ``files``."""

    packages: tuple[str, ...]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """``folder``: of the environment; None: the one that this program runs in."""

    folder: Path | None = None

    @property
    def programs(self) -> Path:
        """Its ``bin``."""
        return Path(sys.executable).parent if self.folder is None else self.folder / "bin"

    @property
    def python(self) -> str:
        """Its interpreter."""
        return sys.executable if self.folder is None else str(self.programs / "python")

    @property
    def files(self) -> Path:
        """Where the files are that were only to be unpacked."""
        assert self.folder is not None, "only where something is installed"
        return self.folder / "files"

    @property
    def variables(self) -> dict[str, str]:
        """What a program that is started in it finds in its environment: Fathom's source is on its path."""
        source = str(Path(fathom.__file__).parents[1])
        path = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def environment(name: str, wanted: Requirements | None, folder: Path = ENVIRONMENTS) -> Environment:
    """The environment of a peer, made where it is not there yet; ``wanted``: None where nothing is to be installed.

    Raises UnavailableError, in one line, where it cannot be made; then nothing of it is left.
    """
    if wanted is None:
        return Environment()
    # The folder as it is: a link in it would make the interpreter leave its environment.
    found = Environment((folder / name).absolute())
    if _is_made(found, wanted):
        return found
    assert found.folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{name}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    new = Environment(Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=found.folder.parent)))
    try:
        _fill(name, new, wanted)
        shutil.rmtree(found.folder, ignore_errors=True)
        new.folder.rename(found.folder)  # type: ignore[union-attr]
    finally:
        shutil.rmtree(new.folder, ignore_errors=True)  # type: ignore[arg-type]
    return found


def _fill(name: str, new: Environment, wanted: Requirements) -> None:
    assert new.folder is not None
    _run(name, [sys.executable, "-m", "venv", str(new.folder)])
    pip = [new.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(name, [*pip, *wanted.packages])
    if wanted.files:
        _run(name, [*pip, "--no-deps", "--target", str(new.files), *wanted.files])
    (new.folder / _MADE).write_text(json.dumps(_described(wanted)))


def _is_made(found: Environment, wanted: Requirements) -> bool:
    assert found.folder is not None
    try:
        made = json.loads((found.folder / _MADE).read_text())
    except (OSError, ValueError):
        return False
    return bool(made == _described(wanted))


def _described(wanted: Requirements) -> dict[str, Any]:
    return {"python": sys.version.split()[0], "packages": list(wanted.packages), "files": list(wanted.files)}


def _run(name: str, command: Sequence[str]) -> None:
    """Raises UnavailableError with the last line that the command wrote, where it fails."""
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=MOST_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{name}: its environment was not made within {MOST_S} s") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        words = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said or ["no words"]
        raise UnavailableError(f"{name}: its environment cannot be made: {words[-1]}") from None
