"""Samples from the rows of a table."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from fathom.errors import DataError, brief
from fathom.training.tables.readers import Table, column_names, delimiter_of, layout_of, read

BATCH = 16

Row = Mapping[str, str]
Kind = Literal["text", "image", "audio"]


@dataclass(frozen=True)
class RowFile(ABC):
    """The rows of a file; iterated, batches for a model, as often as wanted.

    ``reader``: what makes the model's inputs, of this kind, as transformers keeps it beside a model.
    """

    rows: Sequence[Row]
    reader: Any
    kind: Kind

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.rows), BATCH):
            yield self._batch(self.rows[start : start + BATCH])

    def split(self, first: int) -> tuple[Self, Self]:
        """The first rows, and the others."""
        return replace(self, rows=self.rows[:first]), replace(self, rows=self.rows[first:])

    @abstractmethod
    def _batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The arguments of the model for some rows, with labels."""


def columns_of(path: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """The columns that a table has; ``wanted``: some of those that are looked for."""
    layout = layout_of(path)
    return column_names(path, layout, delimiter=_delimiter(path, wanted))


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The cells of these columns; raises DataError for a row without one, and for no row."""
    table = Table(path, layout_of(path), {name: name for name in columns}, delimiter=_delimiter(path, columns))
    rows: list[Row] = []
    for frame in read(table):
        for row in frame.iter_rows(named=True):
            problem = row["problem"] or next((f"{name} is empty" for name in columns if not row[name]), None)
            if problem:
                raise DataError(f"{path}: row {row['row']}: {problem}")
            rows.append({name: row[name] for name in columns})
    if not rows:
        raise DataError(f"{path}: holds no row")
    return rows


def label_numbers(path: Path, rows: Sequence[Row], model: nn.Module) -> dict[str, int]:
    """The class of each label in the file: its name in the model's config, or its number."""
    config: Any = model.config
    named = {str(name): int(number) for name, number in (getattr(config, "label2id", None) or {}).items()}
    found = {}
    for label in {row["label"] for row in rows}:
        whole = label.removesuffix(".0")
        number = named.get(label, int(whole) if whole.isdecimal() and len(whole) < 9 else -1)
        if not 0 <= number < config.num_labels:
            classes = f"{config.num_labels} classes: {', '.join(named)}"
            raise DataError(f"{path}: label {brief(label)!r} is none of the model's {classes}")
        found[label] = number
    return found


def _delimiter(path: Path, columns: Sequence[str]) -> str:
    if layout_of(path) != "csv":
        return ","
    return delimiter_of(path, None, lambda names: bool(set(columns) & set(names)))
