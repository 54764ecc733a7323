"""Cases are grouped by their target's training events, and systems are compared within a group."""

import numpy as np

from fathom.benchmarks.experiments.quality.cold import by_group, cold_groups
from fathom.training.dataset import Sequences
from fathom.training.splits import Cases, Split


def cut(train: list[int], targets: list[int]) -> Split:
    def sequences(items: list[int]) -> Sequences:
        return Sequences(np.array(items, np.int32), np.arange(len(items) + 1))

    rows = np.arange(len(targets), dtype=np.int32)
    cases = Cases(sequences([0] * len(targets)), np.array(targets, np.int32), rows)
    return Split("leave-one-out", sequences(train), sequences([*train, *targets]), cases, cases)


def test_a_case_belongs_to_the_group_of_its_targets_training_events() -> None:
    train = [1] + [2] * 4 + [3] * 5 + [4] * 19 + [5] * 20
    groups = cold_groups(cut(train, targets=[0, 1, 2, 3, 4, 5]), n_items=7)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()} == {
        "all": [0, 1, 2, 3, 4, 5],
        "0": [0],
        "1-4": [1, 2],
        "5-19": [3, 4],
        "20+": [5],
    }


def test_systems_are_compared_case_by_case_within_a_group() -> None:
    groups = {"all": np.ones(4, bool), "0": np.array([True, True, False, False]), "1-4": np.zeros(4, bool)}
    places = {"random": np.array([50.0, np.inf, 1.0, 3.0]), "text": np.array([1.0, 1.0, 1.0, 3.0])}
    found = by_group(places, groups, reference="random")
    assert found["0"]["cases"] == 2
    assert found["0"]["systems"]["text"] == {
        "ndcg@10": {"value": 1.0, "low": 1.0, "high": 1.0},
        "difference": {"value": 1.0, "low": 1.0, "high": 1.0},
    }
    assert found["all"]["systems"]["text"]["difference"]["value"] == 0.5
    assert found["all"]["systems"]["random"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["1-4"] == {"cases": 0, "systems": {}}
