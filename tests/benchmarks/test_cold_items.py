"""The study of new items: what is taken out is gone, what is added is answered, and what is stored is shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.experiments.cold_items import (
    ADDED,
    ALL,
    BENCHMARK,
    KNOWN,
    RandomVectors,
    Server,
    held_out,
    without,
)
from fathom.benchmarks.record import SCHEMA_VERSION
from fathom.errors import ArtefactError
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import Cases

ITEMS, NEW = 52, [50, 51]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The items of the synthetic bundle and two more, in histories of 6."""
    items = np.random.default_rng(0).integers(0, ITEMS, 120).astype(np.int32)
    return Dataset(
        sequences=Sequences(items, np.arange(0, 121, 6)),
        item_ids=tuple(f"item-{i}" for i in range(ITEMS)),
        titles=tuple(f"Title {i}" for i in range(ITEMS)),
        categories=((),) * ITEMS,
        user_ids=tuple(f"user-{i}" for i in range(20)),
        meta={},
        sha256="d" * 64,
    )


def test_what_is_taken_out_leaves_the_other_events_in_their_order(dataset: Dataset) -> None:
    held = held_out(dataset, seed=3, share=0.2)
    assert len(held) == 10
    reduced = without(dataset, held)
    assert not set(reduced.item_ids) & {dataset.item_ids[i] for i in held}
    assert reduced.sha256 != dataset.sha256
    for before, after in zip(dataset.sequences, reduced.sequences, strict=True):
        expected = [dataset.item_ids[i] for i in before if i not in held]
        assert [reduced.item_ids[i] for i in after] == expected


def test_added_items_are_in_histories_and_in_answers(dataset: Dataset, synthetic_bundle: Path) -> None:
    server = Server(synthetic_bundle, dataset, NEW, RandomVectors(8, seed=0))
    histories = Sequences(np.array([1, 50, 2, 3], np.int32), np.array([0, 2, 4]))
    cases = Cases(histories, np.array([51, 51], np.int32), np.array([0, 1], np.int32))
    # The first user has seen one of the two, so only the other is left.
    places = server.places(cases, np.array(NEW))
    assert places[0] == 1
    assert places[1] in (1, 2)
    assert server.left_out == 0


def test_items_that_were_not_added_are_in_no_answer(dataset: Dataset, synthetic_bundle: Path) -> None:
    histories = Sequences(np.array([1, 50, 50], np.int32), np.array([0, 2, 3]))
    cases = Cases(histories, np.array([51, 2], np.int32), np.array([0, 1], np.int32))
    assert np.isinf(Server(synthetic_bundle, dataset).places(cases)).all()


def test_titles_of_a_bundle_without_an_encoder_place_nothing(dataset: Dataset, synthetic_bundle: Path) -> None:
    with pytest.raises(ArtefactError, match="no text encoder"):
        Server(synthetic_bundle, dataset, NEW)


def test_stored_runs_are_shown(tmp_path: Path) -> None:
    places = {ALL: {ADDED: "1020", "popularity": "0000"}, KNOWN: {"not added": "12", ADDED: "10"}}
    run = {
        "schema_version": SCHEMA_VERSION,
        "seed": 0,
        "config": {},
        "result": {"items": 100, "new_items": 5, "not_placed": 0, "places": places},
    }
    path = tmp_path / "cold_items/beauty/seed-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))
    page = BENCHMARK.section(tmp_path)
    assert "Amazon Beauty, seed 0: 5 of 100 items are new" in page
    assert "| all items | added | 4 | .5000" in page
    assert page.count("| known items |") == 2
