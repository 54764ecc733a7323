"""A vector for an item that no model was trained on, from its title and categories; needs numpy alone."""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Of a title; the rest is cut off.
MAX_WORDS = 128
#: Scripts that are written without spaces: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """m known features of texts, and what each adds to an item's vector.

    ``keys``: uint32 (m,), ascending, the features' hashes. ``weights``: float32 (m,), above 0, the logarithm of how
    rare each is. ``projection``: float16 (m + 1, width): a vector for each feature, then what every item starts from.
    """

    keys: NDArray[np.uint32]
    weights: Floats
    projection: NDArray[np.float16]

    def encode(self, titles: Sequence[str], categories: Sequence[Sequence[str]]) -> Floats:
        """Unit vectors, float32 (n, width); a row of zeros where no feature of a text is known."""
        vectors = np.zeros((len(titles), self.projection.shape[1]), np.float32)
        for row, (title, names) in enumerate(zip(titles, categories, strict=True)):
            places, values = self.features(title, names)
            if len(places):
                vector = self.projection[-1] + values @ self.projection[places].astype(np.float32)
                vectors[row] = vector / (np.linalg.norm(vector) or 1)
        return vectors

    def features(self, title: str, categories: Iterable[str]) -> tuple[NDArray[np.int64], Floats]:
        """The known features of a text, (f,) places in ``keys``, and their weights (f,), of length 1 together."""
        wanted = np.array(sorted(hashes(title, categories)), np.uint32)
        places = np.searchsorted(self.keys, wanted)
        places = places[self.keys.take(places, mode="clip") == wanted] if len(self.keys) else places[:0]
        values = self.weights.take(places)
        return places, values / np.linalg.norm(values) if len(values) else values


def hashes(title: str, categories: Iterable[str]) -> set[int]:
    """The features of a text, each hashed to 32 bits: its words, its pairs of neighbouring words, its categories.

    Case and the forms of characters (NFKC) make no difference in a title; the first word also pairs with the beginning.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", title).casefold())[:MAX_WORDS]
    # No word holds a space or a line's end, so no two kinds of features are the same text.
    pairs = (f"{first} {second}" for first, second in pairwise(["", *words]))
    names = (f"\n{name}" for name in categories)
    return {zlib.crc32(feature.encode("utf-8", "replace")) for feature in (*words, *pairs, *names)}
