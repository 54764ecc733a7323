"""A text's vector comes from the features that the encoder knows, whatever else is in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import BundleError
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import MANIFEST_NAME, PROJECTION_FILE, TEXT_FILES, TEXT_KEYS_FILE, TEXT_WEIGHTS_FILE
from fathom.runtime.text_encoder import MAX_WORDS, TextEncoder, hashes


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """Knows the words and pairs of a red lamp, and the category garden."""
    keys = np.array(sorted(hashes("red lamp", ["garden"])), np.uint32)
    rng = np.random.default_rng(0)
    projection = rng.normal(size=(len(keys) + 1, 8)).astype(np.float16)
    return TextEncoder(keys, rng.uniform(1, 5, len(keys)).astype(np.float32), projection)


def test_a_vector_is_the_start_and_the_weighed_vectors_of_the_known_features(encoder: TextEncoder) -> None:
    (vector,) = encoder.encode(["A red chair"], [[]])
    known = hashes("red", []) & hashes("A red chair", [])
    places = [int(np.flatnonzero(encoder.keys == key)[0]) for key in known]
    weights = encoder.weights[places] / np.linalg.norm(encoder.weights[places])
    projection = encoder.projection.astype(np.float64)
    expected = projection[-1] + weights @ projection[places]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_text_without_a_known_feature_gets_a_row_of_zeros(encoder: TextEncoder) -> None:
    assert not encoder.encode(["", "blue chair", "?!"], [[], ["kitchen"], []]).any()


def test_an_encoder_that_knows_nothing_gives_zeros() -> None:
    nothing = TextEncoder(np.empty(0, np.uint32), np.empty(0, np.float32), np.ones((1, 4), np.float16))
    assert not nothing.encode(["red lamp"], [["garden"]]).any()


def test_case_and_forms_of_characters_make_no_difference() -> None:
    assert hashes("RED Café", []) == hashes("red Cafe\u0301", []) == hashes("ＲＥＤ café", [])


def test_the_order_of_words_does() -> None:
    assert hashes("red lamp", []) != hashes("lamp red", [])


def test_a_category_is_no_word_and_categories_have_no_order() -> None:
    assert not hashes("garden", []) & hashes("", ["garden"])
    assert hashes("", ["a", "b"]) == hashes("", ["b", "a"])


def test_a_script_without_spaces_shares_the_words_of_its_parts() -> None:
    assert len(hashes("赤いランプ", []) & hashes("青いランプ", [])) >= 4


def test_what_follows_many_words_is_cut_off() -> None:
    long = " ".join(f"word{n}" for n in range(MAX_WORDS))
    assert hashes(long, []) == hashes(f"{long} more", [])


@given(st.lists(st.tuples(st.text(), st.lists(st.text(), max_size=3)), max_size=5))
def test_every_row_has_length_1_or_0_and_does_not_depend_on_the_others(texts: list[tuple[str, list[str]]]) -> None:
    every = [("red lamp", ["garden"]), *texts]
    keys = np.array(sorted(set().union(*(hashes(*text) for text in every[::2]))), np.uint32)
    projection = np.random.default_rng(1).normal(size=(len(keys) + 1, 4)).astype(np.float16)
    encoder = TextEncoder(keys, np.ones(len(keys), np.float32), projection)
    vectors = encoder.encode(*map(list, zip(*every, strict=True)))
    lengths = np.linalg.norm(vectors, axis=1)
    assert ((abs(lengths - 1) < 1e-5) | (lengths == 0)).all()
    for text, vector in zip(every, vectors, strict=True):
        np.testing.assert_array_equal(encoder.encode([text[0]], [text[1]])[0], vector)


@pytest.fixture
def with_text(encoder: TextEncoder, synthetic_bundle: Path, reseal: Callable[[Path], None], tmp_path: Path) -> Path:
    """A bundle that holds ``encoder``."""
    path = tmp_path / "bundle"
    shutil.copytree(synthetic_bundle, path)
    (path / "text").mkdir()
    for name, array in zip(TEXT_FILES, (encoder.keys, encoder.weights, encoder.projection), strict=True):
        np.save(path / name, array)
    manifest = json.loads((path / MANIFEST_NAME).read_bytes())
    cosine = {"value": 0.3, "low": 0.2, "high": 0.4}
    manifest["text"] = {"features": len(encoder.keys), "cosine": cosine}
    manifest["files"] |= dict.fromkeys(TEXT_FILES)
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))
    reseal(path)
    return path


def test_a_bundle_opens_with_its_encoder(with_text: Path, encoder: TextEncoder) -> None:
    with Bundle.open(with_text) as bundle:
        assert bundle.text_encoder is not None
        expected = encoder.encode(["red lamp"], [["garden"]])
        np.testing.assert_array_equal(bundle.text_encoder.encode(["red lamp"], [["garden"]]), expected)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (TEXT_KEYS_FILE, lambda array: array[::-1], "does not ascend"),
        (TEXT_WEIGHTS_FILE, lambda array: array * 0, "no number above 0"),
        (TEXT_WEIGHTS_FILE, lambda array: array * np.float32(np.nan), "no number above 0"),
        (PROJECTION_FILE, lambda array: array + np.float16(np.inf), "no number"),
        (PROJECTION_FILE, lambda array: array[1:], "is needed"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(
    with_text: Path, reseal: Callable[[Path], None], name: str, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    np.save(with_text / name, np.ascontiguousarray(change(np.load(with_text / name))))
    reseal(with_text)
    with pytest.raises(BundleError, match=words):
        Bundle.open(with_text)
