"""A peer sees our split and no test target; its lists are judged as our own scores are."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.experiments.quality.peers import PEERS, PYTHON, Peer, export, places_of_lists, score_peer
from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.training.baselines import BASELINES
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import evaluate, named
from fathom.training.splits import Split, split

ITEMS = 30


@pytest.fixture(scope="module")
def parts() -> Split:
    """Walks of 80 users over a ring of items, two steps at a time, from histories of two to ten events."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 11, 80)
    items = np.concatenate([(rng.integers(ITEMS) + 2 * np.arange(n)) % ITEMS for n in lengths]).astype(np.int32)
    sequences = Sequences(items, np.concatenate([[0], np.cumsum(lengths)]))
    names = tuple(str(item) for item in range(ITEMS))
    users = tuple(str(user) for user in range(len(lengths)))
    dataset = Dataset(sequences, names, names, ((),) * ITEMS, users, meta={}, sha256="")
    return split(dataset, "leave-one-out")


def test_a_list_places_the_target_as_the_evaluator_places_the_same_scores(parts: Split) -> None:
    score = BASELINES["transitions"](parts.until_test, ITEMS)
    whole = evaluate(parts.test, [named("transitions", score)], n_items=ITEMS).places["transitions"]
    scores = score(parts.test.histories).copy()
    for row, history in enumerate(parts.test.histories):
        scores[row, history] = -np.inf
    lists = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert np.array_equal(places_of_lists(lists, parts.test), np.where(whole <= 10, whole, np.inf))


def test_a_list_that_has_ended_places_nothing_there(parts: Split) -> None:
    lists = np.full((len(parts.test), 10), -1)
    lists[0, 2] = parts.test.targets[0]
    places = places_of_lists(lists, parts.test)
    assert places[0] == 3
    assert np.isinf(places[1:]).all()


def test_lists_of_other_users_are_refused(parts: Split) -> None:
    with pytest.raises(DataError, match="one list for each"):
        places_of_lists(np.zeros((3, 10), dtype=np.int64), parts.test)


def test_a_peer_gets_histories_in_order_and_no_test_target(parts: Split, tmp_path: Path) -> None:
    export(parts, tmp_path / "events.npz")
    events = np.load(tmp_path / "events.npz")
    assert events["test_users"].tolist() == parts.test.users.tolist()
    for row, user in enumerate(parts.test.users):
        history = events["history_items"][events["history_users"] == user]
        trained = events["train_items"][events["train_users"] == user]
        answer = events["validation_targets"][events["validation_users"] == user]
        assert history.tolist() == parts.test.histories[row].tolist() == [*trained, *answer]
    assert len(events["train_items"]) == len(parts.train.items)
    assert "test_targets" not in events


def test_a_missing_environment_is_named_with_how_to_make_it(parts: Split, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install -r .*rectools.txt"):
        score_peer(parts, "sasrec", seed=0, epochs=1, python=tmp_path / "bin" / "python")


def test_a_run_that_fails_tells_its_last_words(parts: Split, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho no memory left >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ArtefactError, match="sasrec of RecTools failed: no memory left"):
        score_peer(parts, "sasrec", seed=0, epochs=1, python=broken)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="needs RecTools' environment")
@pytest.mark.parametrize("model", PEERS)
def test_each_peer_learns_the_walk(model: Peer, parts: Split) -> None:
    report = score_peer(parts, model, seed=0, epochs=50)
    assert np.mean(report["places"] <= 3) > 0.5
    assert report["versions"]["rectools"]
    assert max(epoch for epoch, _ in report["validation"]) <= 50
    json.dumps({name: value for name, value in report.items() if name != "places"}, allow_nan=False)
