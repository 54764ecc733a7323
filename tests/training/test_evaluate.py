"""Every item competes, what was seen does not, and all systems are judged on the same users."""

import json
from typing import Any

import numpy as np
import pytest

from fathom.errors import ConfigError, DataError
from fathom.training import evaluate as module
from fathom.training import splits
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import EvaluationReport, evaluate, evaluate_model, named
from fathom.training.metrics import paired_difference
from fathom.training.splits import Cases, leave_one_out

ITEMS = 40


@pytest.fixture
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    parts = [rng.permutation(ITEMS)[: rng.integers(3, 15)] for _ in range(60)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Dataset(
        sequences=Sequences(np.concatenate(parts).astype(np.int32), offsets),
        item_ids=tuple(map(str, range(ITEMS))),
        titles=("",) * ITEMS,
        categories=((),) * ITEMS,
        user_ids=tuple(map(str, range(60))),
        meta={},
        sha256="",
    )


@pytest.fixture
def cases(dataset: Dataset) -> Cases:
    return leave_one_out(dataset).test


def by_last_item(table: np.ndarray) -> Any:
    return lambda histories: np.stack([table[history[-1]] for history in histories])


def random_table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ITEMS, ITEMS)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_metrics_agree_with_ranking_each_user_by_hand(
    cases: Cases, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "CHUNK_CASES", chunk)
    table = random_table(1)
    report = evaluate(cases, [named("table", by_last_item(table))], n_items=ITEMS)
    hits, recommended = [], set()
    for history, target in zip(cases.histories, cases.targets, strict=True):
        allowed = [item for item in range(ITEMS) if item not in set(history.tolist())]
        ranked = sorted(allowed, key=lambda item: (-table[history[-1], item], item))
        recommended |= set(ranked[:10])
        hits.append(1 + ranked.index(int(target)))
    places = np.array(hits)
    users = report.per_user["table"]
    assert users["mrr"] == pytest.approx(1 / places)
    assert users["hr@10"].tolist() == (places <= 10).tolist()
    assert report.systems["table"].metrics["ndcg@5"].value == pytest.approx(
        np.where(places <= 5, 1 / np.log2(1 + places), 0).mean()
    )
    assert report.systems["table"].coverage == len(recommended) / ITEMS
    assert report.cases == len(cases) == 60


def test_differences_are_paired_with_the_chosen_reference(cases: Cases) -> None:
    scorers = [named(name, by_last_item(random_table(seed))) for seed, name in enumerate("abc")]
    report = evaluate(cases, scorers, n_items=ITEMS, reference="b", resamples=300, seed=4)
    expected = paired_difference(
        report.per_user["c"]["ndcg@10"], report.per_user["b"]["ndcg@10"], resamples=300, seed=4
    )
    assert report.systems["c"].difference["ndcg@10"].as_dict() == pytest.approx(expected.as_dict())
    assert report.systems["b"].difference["hr@20"].as_dict() == {"value": 0, "low": 0, "high": 0}
    with pytest.raises(ConfigError, match="no system 'd' to compare with; there are: a, b, c"):
        evaluate(cases, scorers, n_items=ITEMS, reference="d")


def test_a_target_that_was_seen_is_a_miss_and_is_counted() -> None:
    histories = Sequences(np.array([0, 1, 2, 3], dtype=np.int32), np.array([0, 2, 4]))
    repeated = Cases(histories, np.array([1, 4], dtype=np.int32), np.array([0, 1], dtype=np.int32))
    flat = named("flat", lambda chunk: np.zeros((len(chunk), 5), dtype=np.float32))
    report = evaluate(repeated, [flat], n_items=5)
    assert report.unreachable == 1
    assert report.per_user["flat"]["mrr"].tolist() == [0, 1 / 3]  # items 0, 1 and 4 tie: the lowest goes first
    kept = evaluate(repeated, [flat], n_items=5, filter_seen=False)
    assert kept.unreachable == 0
    assert kept.per_user["flat"]["mrr"].tolist() == [1 / 2, 1 / 5]


def test_scores_that_are_not_numbers_or_of_the_wrong_shape_are_refused(cases: Cases) -> None:
    broken = named("broken", lambda chunk: np.full((len(chunk), ITEMS), np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="broken: some scores are not a number"):
        evaluate(cases, [broken], n_items=ITEMS)
    narrow = named("narrow", lambda chunk: np.zeros((len(chunk), 3), dtype=np.float32))
    with pytest.raises(DataError, match=r"narrow: scores of shape \(60, 3\)"):
        evaluate(cases, [narrow], n_items=ITEMS)


def test_no_case_is_an_error() -> None:
    empty = Cases(
        Sequences(np.array([], dtype=np.int32), np.array([0])),
        np.array([], dtype=np.int32),
        np.array([], dtype=np.int32),
    )
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(empty, [], n_items=3)


def test_a_scorers_own_array_is_left_as_it_was(cases: Cases) -> None:
    scores = np.ones((len(cases), ITEMS), dtype=np.float32)
    evaluate(cases, [named("mine", lambda _: scores)], n_items=ITEMS)
    assert (scores == 1).all()


@pytest.fixture
def model_report(dataset: Dataset) -> EvaluationReport:
    import torch

    from fathom.training.model import ElasticModel, ModelConfig, prefix_paths

    torch.manual_seed(0)
    config = ModelConfig(items=ITEMS, layers=4, paths=prefix_paths((2, 4)), width=16, heads=2, max_history=6)
    return evaluate_model(ElasticModel(config), dataset, leave_one_out(dataset), resamples=100)


def test_all_exits_and_baselines_share_one_table_and_the_deepest_is_the_reference(
    model_report: EvaluationReport,
) -> None:
    assert list(model_report.systems) == ["depth 2", "depth 4", "popularity", "EASE", "transitions"]
    assert model_report.reference == "depth 4"
    table = model_report.table()
    assert table[0] == ["system", "HR@10", "NDCG@10", "MRR", "coverage@10", "NDCG@10 - depth 4"]
    assert [row[0] for row in table[1:]] == list(model_report.systems)
    assert table[2][-1] == ""
    text = json.loads(json.dumps(model_report.as_dict(), allow_nan=False))
    assert text["schema_version"] == 1
    assert set(text["systems"]["EASE"]["metrics"]["hr@5"]) == {"value", "low", "high"}


def test_exit_scores_are_those_of_each_user_alone(dataset: Dataset) -> None:
    import torch

    from fathom.training.model import ElasticModel, ModelConfig, prefix_paths
    from fathom.training.scorer import exit_scorer

    torch.manual_seed(0)
    config = ModelConfig(items=ITEMS, layers=4, paths=prefix_paths((2, 4)), width=16, heads=2, max_history=6)
    model = ElasticModel(config)
    histories = leave_one_out(dataset).test.histories
    found = exit_scorer(model)(histories)
    for index in (0, 17, 59):
        newest = torch.tensor(histories[index][-6:].astype(np.int64))[None] + 1
        for depth in model.depths:
            with torch.inference_mode():
                alone = model.user_vectors(newest, depth=depth) @ model.item_vectors().T
            assert found[f"depth {depth}"][index] == pytest.approx(alone[0].numpy(), abs=1e-5)


def test_a_catalogue_too_large_for_ease_leaves_it_out_and_says_so(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.training.model import ElasticModel, ModelConfig, prefix_paths

    monkeypatch.setattr(module, "EASE_MAX_ITEMS", 10)
    config = ModelConfig(items=ITEMS, layers=1, paths=prefix_paths((1,)), width=8, heads=1, max_history=6)
    report = evaluate_model(ElasticModel(config), dataset, leave_one_out(dataset), part="validation", resamples=50)
    assert "EASE" not in report.systems
    assert report.as_dict()["left_out"] == {"EASE": "the catalogue has more than 10 items"}


def test_an_unknown_baseline_is_refused(dataset: Dataset) -> None:
    from fathom.training.model import ElasticModel, ModelConfig, prefix_paths

    config = ModelConfig(items=ITEMS, layers=1, paths=prefix_paths((1,)), width=8, heads=1, max_history=6)
    with pytest.raises(ConfigError, match="unknown baseline 'luck'; known: popularity, EASE, transitions"):
        evaluate_model(ElasticModel(config), dataset, leave_one_out(dataset), baselines=["luck"])
