"""The encoder that an export fits puts a new item where its text says, and there is none where texts say nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from traced_once import traced_shape

from fathom.edge_profiles.profile import load_profile
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.report import fact_rows
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.bundle.text_fit import fit_text_encoder
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.manifest import TEXT_FILES
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

KINDS = ("red garden lamp", "blue kitchen chair", "green travel bag")
TITLES = tuple(f"{KINDS[i % 3]} model {i}" for i in range(90))
POPULARITY = np.full(90, 5, np.int64)


def clusters(n: int, width: int = 8) -> np.ndarray:
    """Unit vectors around one direction for each kind, items of a kind three apart."""
    rng = np.random.default_rng(0)
    rows = np.eye(width)[:3][np.arange(n) % 3] + rng.normal(0, 0.1, (n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_new_item_lands_in_the_cluster_that_its_title_names() -> None:
    fitted = fit_text_encoder(TITLES, [()] * 90, clusters(90), POPULARITY)
    assert fitted is not None
    encoder, info = fitted
    vectors = encoder.encode(["Large KITCHEN chair", "a travel bag for two", "garden lamp"], [[], [], []])
    assert (vectors @ clusters(90)[:3].T).argmax(axis=1).tolist() == [1, 2, 0]
    assert info.cosine.low > 0.8


def test_categories_alone_are_enough() -> None:
    fitted = fit_text_encoder([""] * 90, [(KINDS[i % 3],) for i in range(90)], clusters(90), POPULARITY)
    assert fitted is not None
    vectors = fitted[0].encode(["", ""], [[KINDS[2]], ["never seen"]])
    assert vectors[0] @ clusters(3)[2] > 0.9
    assert not vectors[1].any()


def test_there_is_no_encoder_without_texts() -> None:
    assert fit_text_encoder([""] * 90, [()] * 90, clusters(90), POPULARITY) is None


def test_there_is_no_encoder_where_titles_say_nothing_of_the_vectors() -> None:
    shuffled = np.random.default_rng(1).permutation(clusters(90))
    assert fit_text_encoder(TITLES, [()] * 90, shuffled, POPULARITY) is None


def test_items_without_training_events_have_no_say() -> None:
    vectors, popularity = clusters(90), POPULARITY.copy()
    vectors[60:], popularity[60:] = -vectors[60:], 0
    fitted = fit_text_encoder(TITLES, [()] * 90, vectors, popularity)
    assert fitted is not None
    assert fitted[0].encode(["garden lamp"], [[]])[0] @ clusters(1)[0] > 0.9


def test_fitting_twice_gives_the_same_bits() -> None:
    first, second = (fit_text_encoder(TITLES, [()] * 90, clusters(90), POPULARITY) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first[1] == second[1]
    assert first[0].projection.tobytes() == second[0].projection.tobytes()


@pytest.fixture(scope="module")
def titled_bundle(
    make_checkpoint: Callable[..., Checkpoint], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An exported bundle whose titles say on which side of a plane an item's vector lies."""
    made = make_checkpoint(**traced_shape(), layers=4, paths={4: (0, 1, 2, 3)})
    with torch.no_grad():
        made.model.embedding.weight[1::2, 0] += 1
        made.model.embedding.weight[2::2, 0] -= 1
    titles = tuple(f"{'travel bag' if i % 2 else 'garden lamp'} {i}" for i in range(dataset.n_items))
    out = tmp_path_factory.mktemp("titled") / "bundle"
    export(replace(made, titles=titles, categories=((),) * len(titles)), dataset, out, name="titled")
    return out


def test_an_exported_bundle_holds_the_encoder_and_shows_it(titled_bundle: Path) -> None:
    with Bundle.open(titled_bundle) as bundle:
        assert bundle.text_encoder is not None
        assert bundle.manifest.text is not None
        lamp, bag = bundle.text_encoder.encode(["garden lamp", "travel bag"], [[], []])
        assert lamp[0] > bag[0]
        assert any(row[0] == "new items" for row in fact_rows(bundle.manifest))


def test_a_catalogue_that_lives_places_a_new_item_with_it(titled_bundle: Path) -> None:
    with Bundle.open(titled_bundle) as bundle:
        assert bundle.text_encoder is not None
        catalogue = LiveCatalogue(bundle)
        catalogue.apply(catalogue.prepare([ItemRecord("new", title="Garden lamp, large")]), version=1)
        expected = bundle.text_encoder.encode(["Garden lamp, large"], [[]])
        np.testing.assert_array_equal(catalogue.vectors.take(np.array([len(catalogue) - 1])), expected)


def test_a_slice_keeps_the_encoder(titled_bundle: Path, tmp_path: Path) -> None:
    made = slice_bundle(titled_bundle, load_profile("mobile"), tmp_path / "small")
    with Bundle.open(titled_bundle) as before, Bundle.open(tmp_path / "small") as after:
        assert made.text == before.manifest.text
        assert all(made.files[name] == before.manifest.files[name] for name in TEXT_FILES)
        assert after.text_encoder is not None


def test_a_bundle_whose_texts_say_nothing_has_none(bundle_path: Path) -> None:
    with Bundle.open(bundle_path) as bundle:
        assert bundle.text_encoder is None
        assert bundle.manifest.text is None
