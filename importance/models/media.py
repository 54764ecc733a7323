"""Pictures and sounds with their classes, from a table that names their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fathom.errors import DataError, brief, optional
from fathom.importance.models.rows import Kind, Row, RowFile, columns_of, label_numbers, read_rows


@dataclass(frozen=True)
class MediaFile(RowFile):
    """The rows of a file of pictures or sounds; ``reader``: the image processor or feature extractor.

    ``folder``: where the files lie that have no absolute path.
    """

    label_of: Mapping[str, int]
    folder: Path

    def _batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        paths = [self.folder / row[self.kind] for row in rows]
        if self.kind == "image":
            inputs = self.reader([picture(path) for path in paths], return_tensors="pt")
        else:
            rate = self.reader.sampling_rate
            sounds = [sound(path, rate) for path in paths]
            # As long as the longest, unless the reader has a length of its own.
            padding = signature(self.reader.__call__).parameters.get("padding")
            asked = {"padding": padding.default or True} if padding is not None else {}
            inputs = self.reader(sounds, sampling_rate=rate, return_tensors="pt", **asked)
        return {**inputs, "labels": torch.tensor([self.label_of[row["label"]] for row in rows])}


def kind_of(path: Path, task: str) -> Kind:
    """What the rows of a table hold: for classification ``image`` or ``audio`` by such a column, else ``text``."""
    if task != "classification":
        return "text"
    names = columns_of(path, ("text", "image", "audio", "label"))
    kinds: tuple[Kind, ...] = ("text", "image", "audio")
    return next((kind for kind in kinds if kind in names), "text")


def read_media(path: Path, kind: Kind, reader: Any, model: nn.Module) -> MediaFile:
    """The rows of a table with the columns ``image`` or ``audio``, the path of a file, and ``label``.

    Paths are relative to the table. Raises DataError for a file that is not like that, and for one that is missing.
    """
    rows = read_rows(path, (kind, "label"))
    for row in rows:
        if not _is_file(path.parent / row[kind]):
            raise DataError(f"{path}: {brief(row[kind])}: no such file")
    return MediaFile(rows, reader, kind, label_numbers(path, rows, model), path.parent)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def picture(path: Path) -> Any:
    """A picture in colours; raises DataError for what is none."""
    images = optional("PIL.Image", "train")
    try:
        with images.open(path) as opened:
            if opened.mode in ("I", "F"):
                raise DataError(f"{path}: a picture of 32 bits a channel; save it with 8 or 16")
            if opened.mode.startswith("I;16"):
                return images.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
            return opened.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # readers of broken files raise anything
        raise DataError(f"{path}: not a picture: {brief(str(error), 80)}") from None


def sound(path: Path, rate: int) -> NDArray[np.float32]:
    """A WAV file at so many samples a second, one channel, from -1 to 1; raises DataError for what is none."""
    wavfile, signal = optional("scipy.io.wavfile", "train"), optional("scipy.signal", "train")
    try:
        own, values = wavfile.read(path)
    except Exception as error:  # readers of broken files raise anything
        raise DataError(f"{path}: not a WAV file: {brief(str(error), 80)}") from None
    if not own or not values.size:
        raise DataError(f"{path}: holds no sound")
    scale = {"u": 128, "i": np.iinfo(values.dtype).max + 1 if values.dtype.kind == "i" else 1}.get(values.dtype.kind, 1)
    wave = (values.astype(np.float64) - (128 if values.dtype.kind == "u" else 0)) / scale
    wave = wave.mean(1) if wave.ndim > 1 else wave
    ratio = Fraction(rate, own)
    return np.asarray(signal.resample_poly(wave, ratio.numerator, ratio.denominator), np.float32)
