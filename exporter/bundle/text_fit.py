"""Fits the text encoder of a bundle: a ridge regression from the features of texts to the trained item vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fathom.runtime.manifest import MetricInterval, TextInfo
from fathom.runtime.text_encoder import TextEncoder, hashes
from fathom.training.metrics import interval

Floats = NDArray[np.float32]

#: Share of the items that the encoder is judged on, or so many, at most half.
HELD_OUT, LEAST_HELD_OUT = 0.1, 200
#: Of the regression; features have length 1. Stronger ones order new items among themselves no better, and put them
#: before more of the known ones: vectors that say little are near those of many users.
REGULARISATION = 1.0
#: A feature of one item alone says nothing of another; of more features than this the most common are kept.
LEAST_ITEMS, MOST_FEATURES = 2, 1 << 16
#: Of the conjugate gradients; errors of the prediction are far above the tolerance.
ITERATIONS, TOLERANCE = 100, 1e-3


@dataclass(frozen=True)
class _Texts:
    """The features of n texts: those of text i are ``hashes[offsets[i] : offsets[i + 1]]``, ascending."""

    hashes: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def vocabulary(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], Floats]:
        """Keys and weights of the features to know, from the texts of the chosen items."""
        items = int(chosen.sum())
        keys, counts = np.unique(self.hashes[np.repeat(chosen, np.diff(self.offsets))], return_counts=True)
        useful = np.flatnonzero((counts >= LEAST_ITEMS) & (counts < items))
        useful = np.sort(useful[np.argsort(-counts[useful], kind="stable")[:MOST_FEATURES]])
        return keys[useful], np.log((1 + items) / (1 + counts[useful])).astype(np.float32)

    def matrix(self, keys: NDArray[np.uint32], weights: Floats) -> Any:
        """As ``TextEncoder.features`` has them: csr float32 (n, features), with rows of length 1 or 0."""
        places = np.searchsorted(keys, self.hashes).clip(max=len(keys) - 1)
        known = keys[places] == self.hashes
        rows, places = np.repeat(np.arange(len(self)), np.diff(self.offsets))[known], places[known]
        lengths = np.sqrt(np.bincount(rows, weights[places] ** 2, minlength=len(self)))
        values = (weights[places] / lengths[rows]).astype(np.float32)
        return sparse.csr_array((values, (rows, places)), shape=(len(self), len(keys)))


def fit_text_encoder(
    titles: Sequence[str], categories: Sequence[Sequence[str]], vectors: Floats, popularity: NDArray[np.int64]
) -> tuple[TextEncoder, TextInfo] | None:
    """The encoder of a catalogue of n items, and what it is worth; None where texts say nothing of vectors (n, width).

    Items without training events, ``popularity`` (n,), have no say. There is no encoder where its mean cosine on
    items that were held out, a tenth of a large catalogue, is not measurably above that of the mean of all vectors.
    The same arguments give the same bits.
    """
    texts = _read(titles, categories)
    usable = (popularity > 0) & (np.diff(texts.offsets) > 0)
    share = min(0.5, max(HELD_OUT, LEAST_HELD_OUT / max(1, usable.sum())))
    held = usable & (np.random.default_rng(len(texts)).random(len(texts)) < share)
    shown = usable & ~held
    if held.sum() < 2 or not len(texts.vocabulary(shown)[0]):
        return None
    cosines = _cosines(texts, vectors, shown, held)
    plain = vectors[held] @ _unit(vectors[shown].mean(axis=0))
    if interval(cosines - plain).low <= 0:
        return None
    encoder = _fit(texts, vectors, usable)
    info = TextInfo(features=len(encoder.keys), cosine=MetricInterval(**interval(cosines).as_dict()))
    return encoder, info


def _read(titles: Sequence[str], categories: Sequence[Sequence[str]]) -> _Texts:
    found = [sorted(hashes(title, names)) for title, names in zip(titles, categories, strict=True)]
    offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
    return _Texts(np.fromiter((each for text in found for each in text), np.uint32, int(offsets[-1])), offsets)


def _cosines(texts: _Texts, vectors: Floats, shown: NDArray[np.bool_], held: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of held-out items: their cosine to what an encoder that was fitted to the others gives, 0 for nothing."""
    encoder = _fit(texts, vectors, shown)
    rows = texts.matrix(encoder.keys, encoder.weights)[np.flatnonzero(held)]
    made = rows @ encoder.projection[:-1].astype(np.float32) + encoder.projection[-1].astype(np.float32)
    made[np.diff(rows.indptr) == 0] = 0
    cosines: NDArray[np.float64] = (_unit(made) * vectors[held]).sum(axis=1, dtype=np.float64)
    return cosines


def _fit(texts: _Texts, vectors: Floats, chosen: NDArray[np.bool_]) -> TextEncoder:
    keys, weights = texts.vocabulary(chosen)
    mean = vectors[chosen].mean(axis=0)
    projection = _ridge(texts.matrix(keys, weights)[np.flatnonzero(chosen)], vectors[chosen] - mean)
    return TextEncoder(keys, weights, np.vstack([projection, mean]).astype(np.float16))


def _ridge(rows: Any, targets: Floats) -> Floats:
    """What minimises |rows @ w - targets|^2 + REGULARISATION |w|^2, (features, width), by conjugate gradients."""
    columns = sparse.csr_array(rows.T)
    found = np.zeros((rows.shape[1], targets.shape[1]), np.float32)
    left = columns @ targets
    direction: Floats = left.copy()
    errors: Floats = (left * left).sum(axis=0)
    first, tiny = errors, np.float32(1e-30)
    for _ in range(ITERATIONS):
        if (errors <= TOLERANCE**2 * first).all():
            break
        curved = columns @ (rows @ direction) + np.float32(REGULARISATION) * direction
        step = errors / np.maximum((direction * curved).sum(axis=0), tiny)
        found += step * direction
        left -= step * curved
        before, errors = errors, (left * left).sum(axis=0)
        direction = left + errors / np.maximum(before, tiny) * direction
    return found


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12, dtype=np.float32)
    return unit
