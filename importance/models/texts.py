"""Texts and their answers from a file, as batches for a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError, brief
from fathom.importance.tasks.interface import IGNORED
from fathom.training.tables.readers import Table, delimiter_of, layout_of, read

#: What a file must hold for a task, by the names of its columns.
COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "generation": ("text",),
    "question_answering": ("question", "context", "answer"),
    "summarisation": ("source", "target"),
    "translation": ("source", "target"),
}
MOST_TOKENS = 256
BATCH = 16

Row = Mapping[str, str]


@dataclass(frozen=True)
class TextFile:
    """The rows of a file; iterated, batches for a model of a task, as often as wanted."""

    rows: Sequence[Row]
    task: str
    tokenizer: Any
    label_of: Mapping[str, int]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.rows), BATCH):
            yield self._batch(self.rows[start : start + BATCH])

    def split(self, first: int) -> tuple[Self, Self]:
        """The first rows, and the others."""
        return replace(self, rows=self.rows[:first]), replace(self, rows=self.rows[first:])

    def _batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        match self.task:
            case "classification":
                labels = torch.tensor([self.label_of[row["label"]] for row in rows])
                return {**self._tokens([row["text"] for row in rows]), "labels": labels}
            case "question_answering":
                return self._spans(rows)
            case "generation":
                tokens = self._tokens([row["text"] for row in rows])
                return {**tokens, "labels": _counted(tokens)}
        targets = self._tokens([row["target"] for row in rows])
        return {**self._tokens([row["source"] for row in rows]), "labels": _counted(targets)}

    def _tokens(self, *texts: Sequence[str], **asked: Any) -> Any:
        most = min(MOST_TOKENS, self.tokenizer.model_max_length)
        given = {"padding": True, "truncation": True, "max_length": most, "return_tensors": "pt"}
        return self.tokenizer(*map(list, texts), **given, **asked)

    def _spans(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Tokens of question and context, and the first and last token of the answer, where it first occurs."""
        questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
        encoded = self._tokens(questions, contexts, return_offsets_mapping=True)
        ends = []
        for n, row in enumerate(rows):
            begin = row["context"].find(row["answer"])
            last = begin + len(row["answer"])
            offsets = encoded["offset_mapping"][n]
            inside = [place for place, part in enumerate(encoded.sequence_ids(n)) if part == 1]
            touched = [place for place in inside if offsets[place, 0] < last and offsets[place, 1] > begin]
            if begin < 0 or not touched:
                answer = brief(row["answer"])
                raise DataError(f"the answer {answer!r} is not in its context, or beyond the tokens that are read")
            ends.append((touched[0], touched[-1]))
        tokens = {name: value for name, value in encoded.items() if name != "offset_mapping"}
        return {**tokens, "labels": torch.tensor(ends)}


def check_has_texts(task: str) -> None:
    """Raise ConfigError for a task whose samples a text file cannot hold."""
    if task not in COLUMNS:
        raise ConfigError(f"{task} has no text file of its own; use create_analyzer in Python (docs/layers.md)")


def read_texts(path: Path, task: str, tokenizer: Any, model: nn.Module) -> TextFile:
    """The rows of a table, such as CSV or JSON lines, with the columns of a task, see ``COLUMNS``.

    Labels are numbers, or the names that the model's config has for its classes. Raises DataError for a file that is
    not like that, ConfigError for a task that has none.
    """
    check_has_texts(task)
    rows = _rows(path, COLUMNS[task])
    label_of = _labels(path, rows, model) if task == "classification" else {}
    return TextFile(rows, task, tokenizer, label_of)


def _rows(path: Path, columns: tuple[str, ...]) -> list[Row]:
    layout = layout_of(path)
    delimiter = delimiter_of(path, None, lambda names: set(columns) <= set(names)) if layout == "csv" else ","
    table = Table(path, layout, {name: name for name in columns}, delimiter=delimiter)
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


def _labels(path: Path, rows: Sequence[Row], model: nn.Module) -> dict[str, int]:
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


def _counted(tokens: Mapping[str, Tensor]) -> Tensor:
    """Tokens as labels, without the padding."""
    return tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
