"""Texts and their answers from a file, as batches for a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError, brief
from fathom.importance.models.rows import Row, RowFile, label_numbers, read_rows
from fathom.importance.tasks.interface import IGNORED

#: What a file must hold for a task, by the names of its columns.
COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "generation": ("text",),
    "question_answering": ("question", "context", "answer"),
    "summarisation": ("source", "target"),
    "translation": ("source", "target"),
}
MOST_TOKENS = 256


@dataclass(frozen=True)
class TextFile(RowFile):
    """The rows of a file of texts; ``reader``: the tokenizer."""

    task: str
    label_of: Mapping[str, int]

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
        most = min(MOST_TOKENS, self.reader.model_max_length)
        given = {"padding": True, "truncation": True, "max_length": most, "return_tensors": "pt"}
        return self.reader(*map(list, texts), **given, **asked)

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
        raise ConfigError(f"{task} cannot be read from a table; use create_analyzer in Python (docs/layers.md)")


def read_texts(path: Path, task: str, tokenizer: Any, model: nn.Module) -> TextFile:
    """The rows of a table, such as CSV or JSON lines, with the columns of a task, see ``COLUMNS``.

    Labels are numbers, or the names that the model's config has for its classes. Raises DataError for a file that is
    not like that, ConfigError for a task that has none.
    """
    check_has_texts(task)
    rows = read_rows(path, COLUMNS[task])
    return TextFile(rows, tokenizer, "text", task, label_numbers(path, rows, model) if task == "classification" else {})


def _counted(tokens: Mapping[str, Tensor]) -> Tensor:
    """Tokens as labels, without the padding."""
    return tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
