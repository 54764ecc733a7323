"""What else depth 0 could be: the heuristic of transition graphs by hand, and the study run for real on small data."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments import counting_forms
from fathom.benchmarks.experiments.quality import study
from fathom.benchmarks.experiments.transition_graph import VARIANTS, transition_graph
from fathom.training.dataset import Sequences


def sequences(*parts: list[int]) -> Sequences:
    items = np.array([item for part in parts for item in part], dtype=np.int32)
    return Sequences(items, np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64))


def best(train: Sequences, titles: np.ndarray, budgets: tuple[tuple[int, ...], ...], history: list[int]) -> list[int]:
    scores = transition_graph(train, len(titles), titles, budgets)(sequences(history))[0]
    return np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)].tolist()


#: 0 is followed by 1 (twice) and 2, these by 3 and 4, and 3 by 5.
GRAPH = sequences([0, 1, 3, 5], [0, 2, 4], [0, 1])
ALIKE = np.ones((6, 1), dtype=np.float32)


def test_the_graph_heuristic_takes_the_budget_of_each_ring_nearest_first() -> None:
    assert best(GRAPH, ALIKE, ((2, 1, 1),), [0]) == [1, 2, 3, 4]  # 5 is in ring 3
    assert best(GRAPH, ALIKE, ((2, 2, 1),), [0]) == [1, 2, 3, 4, 5]
    assert best(GRAPH, ALIKE, ((1, 1),), [0]) == [1, 2]  # what ring 1 has left over comes before ring 2


def test_the_graph_heuristic_prefers_similar_titles_and_frequent_edges() -> None:
    titles = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    assert best(GRAPH, titles, ((2, 1),), [0]) == [2, 1, 4]  # 0.32 + 1 against 0.5, then the more similar title
    assert best(GRAPH, ALIKE, ((1,),), [0]) == [1]


def test_the_graph_heuristic_skips_seen_items_and_what_the_newest_item_gave() -> None:
    assert best(GRAPH, ALIKE, ((2, 1), (2, 1)), [1, 0]) == [2, 3, 4, 5]
    assert best(GRAPH, ALIKE, VARIANTS["TGH-1"], [5]) == []  # nothing follows it: popularity alone


def test_a_run_holds_every_form_of_depth_0_and_is_shown(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
    main(["run", "counting_forms", "small", "--path", str(tiny_csv)])
    stored = json.loads((tmp_path / "results/counting_forms/small/forms-seed-0.json").read_bytes())
    names = ["as tuned", "transitions alone", "EASE alone, 64 weights an item", "EASE alone, all weights"]
    assert list(stored["result"]["systems"]) == names
    page = counting_forms.BENCHMARK.section(tmp_path / "results")
    assert all(f"| {name} |" in page for name in names)
    assert counting_forms.BENCHMARK.section(tmp_path) == ""
