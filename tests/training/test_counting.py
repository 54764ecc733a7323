"""The counting exit: counted as a plain loop counts, tuned repeatably, and mixed in only where it helps."""

import copy
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import ItemFilter
from fathom.training import counting as module
from fathom.training.baselines import ease_weights
from fathom.training.counting import (
    CountingSettings,
    CountingTables,
    count,
    first_not_worse,
    fit_counting,
    tune,
    with_counting,
)
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import EvaluationReport, evaluate_model
from fathom.training.model import ElasticModel, ModelConfig, prefix_paths
from fathom.training.scorer import exit_scorer
from fathom.training.splits import Cases, Split, leave_one_out

ITEMS, USERS = 30, 120
DAY_S = 86_400

parts_of_items = st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=6)
all_settings = st.builds(
    CountingSettings,
    max_lag=st.integers(1, 5),
    backward=st.sampled_from([0.0, 0.25, 1.0]),
    target_power=st.sampled_from([0.0, 0.5]),
    source_power=st.sampled_from([0.0, 0.25]),
    decay=st.sampled_from([0.5, 0.8]),
    window=st.integers(1, 4),
    neighbours=st.integers(1, 7),
)


def sequences(*parts: list[int], timestamps: list[int] | None = None) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    items = np.array([item for part in parts for item in part], dtype=np.int32)
    return Sequences(items, offsets, None if timestamps is None else np.array(timestamps, dtype=np.int64))


def weights_of(tables: CountingTables) -> dict[tuple[int, int], float]:
    owners = np.repeat(np.arange(len(tables.offsets) - 1), np.diff(tables.offsets))
    keys = zip(owners.tolist(), tables.neighbours.tolist(), strict=True)
    return dict(zip(keys, tables.weights.tolist(), strict=True))


def by_hand(parts: list[list[int]], n_items: int, chosen: CountingSettings) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = defaultdict(float)
    for part in parts:
        for first, a in enumerate(part):
            for lag in range(1, chosen.max_lag + 1):
                if first + lag < len(part) and (b := part[first + lag]) != a:
                    found[a, b] += 1 / lag
                    found[b, a] += chosen.backward / lag
    events = [max(1, sum(part.count(item) for part in parts)) for item in range(n_items)]
    return {
        (a, b): gain * events[a] ** -chosen.source_power * events[b] ** -chosen.target_power
        for (a, b), gain in found.items()
        if gain
    }


@given(parts_of_items, all_settings)
@settings(max_examples=60, deadline=None)
def test_transitions_are_those_of_a_double_loop_and_the_largest_are_kept(
    parts: list[list[int]], chosen: CountingSettings
) -> None:
    expected = by_hand(parts, 7, chosen)
    everything = weights_of(count(sequences(*parts), 7, replace(chosen, neighbours=7)))
    assert everything == pytest.approx(expected, rel=1e-6)
    kept = weights_of(count(sequences(*parts), 7, chosen))
    for item in range(7):
        row = {b: weight for (a, b), weight in everything.items() if a == item}
        best = sorted(row, key=lambda b: (-row[b], b))[: chosen.neighbours]
        assert {b: weight for (a, b), weight in kept.items() if a == item} == {b: row[b] for b in best}


def test_of_equal_neighbours_the_lowest_indices_are_kept() -> None:
    tables = count(sequences([0, 3], [0, 1], [0, 2], [0, 2]), 4, CountingSettings(neighbours=2, target_power=0))
    assert [b for a, b in weights_of(tables) if a == 0] == [1, 2]


@given(parts_of_items, parts_of_items, all_settings)
@settings(max_examples=40, deadline=None)
def test_depth_0_gives_the_same_items_and_scores_offline_as_the_server(
    parts: list[list[int]], asked: list[list[int]], chosen: CountingSettings
) -> None:
    tables = count(sequences(*parts), 7, chosen)
    arrays = (tables.offsets, tables.neighbours, tables.weights, tables.popularity)
    server = Counting(*arrays, chosen.window, chosen.decay)
    scores = tables.scores(sequences(*asked))
    assert scores.dtype == np.float32
    for history, row in zip(asked, scores, strict=True):
        items, expected = server.best(np.array(history, dtype=np.int64), 7, ItemFilter())
        assert sorted(items.tolist()) == list(range(7))
        assert row[items] == pytest.approx(expected, rel=1e-6)


def test_ease_is_mixed_in_at_the_scale_of_what_is_counted() -> None:
    rng = np.random.default_rng(4)
    known = sequences(*[rng.permutation(9)[: rng.integers(2, 7)].tolist() for _ in range(40)])
    chosen = CountingSettings(neighbours=9)
    counted = weights_of(count(known, 9, chosen))
    ease = np.maximum(ease_weights(known, 9, module.EASE_REGULARISATION), 0)
    largest = np.mean([max(weight for (a, _), weight in counted.items() if a == item) for item in range(9)])
    ease *= largest / ease.max(axis=1).mean()
    pairs = {(a, b) for a in range(9) for b in range(9) if counted.get((a, b)) or ease[a, b]}
    mixed = {pair: 0.75 * counted.get(pair, 0) + 0.25 * ease[pair] for pair in pairs}
    assert weights_of(count(known, 9, replace(chosen, ease=0.25))) == pytest.approx(mixed, rel=1e-4)
    alone = {pair: ease[pair] for pair in pairs if ease[pair]}
    assert weights_of(count(known, 9, replace(chosen, ease=1.0))) == pytest.approx(alone, rel=1e-4)


def test_an_empty_history_gets_popularity() -> None:
    scores = count(sequences([0, 1], [0, 2], [0]), 4, CountingSettings()).scores(sequences([], [0]))
    assert scores[0] == pytest.approx(np.array([0.6, 0.2, 0.2, 0]) - 1)
    assert scores[1] == pytest.approx([0.6 - 1, 1, 1, -1])


def test_popularity_halves_with_every_half_life_and_is_plain_without_times() -> None:
    times = [0, 30 * DAY_S, 0, 60 * DAY_S]
    recent = CountingSettings(half_life_days=30)
    dated = sequences([0, 1], [0, 2], timestamps=times)
    assert count(dated, 3, recent).popularity == pytest.approx(np.array([0.5, 0.5, 1]) / 2)
    assert count(sequences([0, 1], [0, 2]), 3, recent).popularity == pytest.approx([0.5, 0.25, 0.25])
    assert count(sequences([], []), 3, recent).popularity.tolist() == [0, 0, 0]


def dataset_of(parts: list[np.ndarray], times: np.ndarray | None = None) -> Dataset:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Dataset(
        sequences=Sequences(np.concatenate(parts).astype(np.int32), offsets, times),
        item_ids=tuple(map(str, range(ITEMS))),
        titles=("",) * ITEMS,
        categories=((),) * ITEMS,
        user_ids=tuple(map(str, range(len(parts)))),
        meta={},
        sha256="",
    )


@pytest.fixture(scope="module")
def model() -> ElasticModel:
    import torch

    torch.manual_seed(0)
    return ElasticModel(
        ModelConfig(items=ITEMS, layers=4, paths=prefix_paths((2, 4)), width=16, heads=2, max_history=6)
    )


@pytest.fixture(scope="module")
def in_order() -> Dataset:
    """Every user walks through the catalogue in steps of one or two, from an item of their own."""
    rng = np.random.default_rng(0)
    walks = [rng.integers(ITEMS) + np.cumsum(rng.integers(1, 3, size=9)) for _ in range(USERS)]
    return dataset_of([walk % ITEMS for walk in walks])


@pytest.fixture(scope="module")
def shuffled() -> Dataset:
    rng = np.random.default_rng(2)
    return dataset_of([rng.permutation(ITEMS)[:9] for _ in range(USERS)])


def test_tuning_is_repeatable_and_at_least_as_good_as_its_start(in_order: Dataset) -> None:
    cut = leave_one_out(in_order)
    tuned = tune(cut.train, cut.validation, ITEMS)
    assert tuned == tune(cut.train, cut.validation, ITEMS)

    def quality(chosen: CountingSettings) -> float:
        tables = count(cut.train, ITEMS, replace(chosen, neighbours=128))
        return float(module._case_ndcg(cut.validation, ITEMS, tables.scores).mean())

    assert quality(tuned) >= quality(CountingSettings())
    assert tuned.backward == 0  # nobody walks back
    assert tuned.neighbours == 16


def pairs_in_ranges() -> tuple[Sequences, Cases]:
    """Each user likes one of two ranges of eight items; who has one item of a pair buys the other, at any time.

    Transitions hear the range's many voices for what is left of it; EASE knows that they all say the same.
    """
    rng = np.random.default_rng(5)
    known, asked, targets = [], [], []
    for user in range(3 * USERS):
        liked = rng.permutation(8)[:6] + 8 * (user % 2)
        one = 16 + int(rng.integers(7))
        if user % 3:
            pair = [one, one + 7] if rng.random() < 0.5 else [16 + rng.integers(7), 23 + rng.integers(7)]
            known.append(rng.permutation([*liked, *pair]).tolist())
        else:
            asked.append(rng.permutation([*liked, one]).tolist())
            targets.append(one + 7)
    cases = Cases(sequences(*asked), np.array(targets, np.int32), np.arange(len(targets), dtype=np.int32))
    return sequences(*known), cases


def test_ease_gets_a_share_where_what_was_bought_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EASE_REGULARISATION", 1.0)  # for so few users
    train, cases = pairs_in_ranges()
    assert tune(train, cases, ITEMS).ease > 0
    monkeypatch.setattr(module, "EASE_MAX_ITEMS", ITEMS - 1)
    assert tune(train, cases, ITEMS).ease == 0


def test_ease_gets_no_share_where_order_is_everything(in_order: Dataset) -> None:
    cut = leave_one_out(in_order)
    assert tune(cut.train, cut.validation, ITEMS).ease == 0


def test_the_half_life_with_which_popularity_is_best_is_chosen() -> None:
    """A new fashion every 100 days: what was popular before is of no use."""
    rng = np.random.default_rng(2)
    days = np.sort(rng.uniform(250, 300, size=(USERS, 3)), axis=1)
    late = rng.permuted(np.tile(np.arange(20, 30), (USERS, 1)), axis=1)[:, :3]
    early = rng.permuted(np.tile(np.arange(0, 10), (3 * USERS, 1)), axis=1)[:, :2]
    parts = [*late, *early]
    times = np.concatenate([days.ravel(), np.tile([0.0, 1.0], len(early))]) * DAY_S
    cut = leave_one_out(dataset_of(parts, times.astype(np.int64)))
    assert tune(cut.train, cut.validation, ITEMS).half_life_days == 30
    undated = leave_one_out(dataset_of(parts))
    assert tune(undated.train, undated.validation, ITEMS).half_life_days is None


def trained(model: ElasticModel, train: Sequences) -> ElasticModel:
    """A copy of a model that knows what comes next at every exit."""
    import torch

    known = copy.deepcopy(model).train()
    optimiser = torch.optim.Adam(known.parameters(), lr=0.02)
    histories = torch.from_numpy(train.items.reshape(len(train), -1)).long()
    for _ in range(40):
        optimiser.zero_grad()
        loss = torch.zeros(())
        for depth, hidden in known.hidden(histories[:, :-1] + 1, None).items():
            scores = known.read_exit(depth, hidden[:, -1]) @ known.item_vectors().T
            loss = loss + torch.nn.functional.cross_entropy(10 * scores, histories[:, -1])
        loss.backward()
        optimiser.step()
    return known.eval()


def test_counting_gets_weight_only_where_it_helps_the_same_at_every_depth(
    model: ElasticModel, in_order: Dataset, shuffled: Dataset
) -> None:
    two, four = fit_counting(model, leave_one_out(in_order), ITEMS).weights.values()
    assert two == four > 0
    cut = leave_one_out(in_order)
    network = trained(model, cut.train)
    assert fit_counting(network, replace(cut, train=shuffled.sequences), ITEMS).weights == {2: 0, 4: 0}


def test_the_first_that_is_within_one_standard_error_of_the_best_is_chosen() -> None:
    rng = np.random.default_rng(3)
    best = rng.random(100)
    noise = rng.choice([-1.0, 1.0], size=100)
    error = noise.std(ddof=1) / 10
    lost = noise - noise.mean()
    slightly, clearly = best - lost - 0.9 * error, best - lost - 1.1 * error
    assert first_not_worse(np.stack([clearly, slightly, best])) == 1
    assert first_not_worse(np.stack([clearly, best, best])) == 1
    assert first_not_worse(np.array([[0.0], [1.0]])) == 0


def test_no_window_looks_at_more_items_than_a_request_can_have(model: ElasticModel, in_order: Dataset) -> None:
    cut = leave_one_out(in_order)
    assert fit_counting(model, cut, ITEMS).tables.settings.window <= model.config.max_history
    assert tune(cut.train, cut.validation, ITEMS, longest=3).window == 3


def test_without_validation_cases_nothing_is_tuned_and_the_network_stands_alone(model: ElasticModel) -> None:
    cut = leave_one_out(dataset_of([np.array([0, 1]), np.array([0, 2])]))
    found = fit_counting(model, cut, ITEMS)
    assert found.tables.settings == CountingSettings(window=model.config.max_history)
    assert found.weights == {2: 0, 4: 0}
    assert list(weights_of(found.tables)) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_few_cases_stand_for_many(model: ElasticModel, in_order: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TUNING_CASES", 10)
    said: list[str] = []
    fit_counting(model, leave_one_out(in_order), ITEMS, progress=said.append)
    assert "weighing counting beside the network: 10 of 10 users" in said


def test_a_served_score_is_the_cosine_and_the_weighed_share(model: ElasticModel, in_order: Dataset) -> None:
    cut = leave_one_out(in_order)
    exit = replace(fit_counting(model, cut, ITEMS), weights={2: 0.5, 4: 0.0})
    histories = cut.test.histories
    found, cosines = with_counting(exit_scorer(model), exit)(histories), exit_scorer(model)(histories)
    assert list(found) == ["depth 0", "depth 2", "depth 4"]
    shares = np.maximum(found["depth 0"], 0)  # below 0 is popularity
    assert (shares.max(axis=1) == 1).all()
    assert found["depth 2"] == pytest.approx(cosines["depth 2"] + 0.5 * shares)
    assert (found["depth 4"] == cosines["depth 4"]).all()


@pytest.fixture(scope="module")
def report(model: ElasticModel, in_order: Dataset) -> EvaluationReport:
    cut = leave_one_out(in_order)
    exit = replace(fit_counting(model, cut, ITEMS), weights={2: 0.5, 4: 0.0})
    return evaluate_model(model, in_order, cut, counting=exit, baselines=["popularity"], resamples=50)


def test_an_evaluation_shows_depth_0_and_what_counting_adds(
    report: EvaluationReport, model: ElasticModel, in_order: Dataset
) -> None:
    assert list(report.systems) == ["depth 0", "depth 2", "depth 4", "depth 2 alone", "popularity"]
    assert report.reference == "depth 4"
    before = evaluate_model(model, in_order, leave_one_out(in_order), baselines=(), resamples=50)
    assert (report.per_user["depth 2 alone"]["ndcg@10"] == before.per_user["depth 2"]["ndcg@10"]).all()
    added = report.per_user["depth 2"]["ndcg@10"] - before.per_user["depth 2"]["ndcg@10"]
    assert added.mean() > 0.1


def test_on_validation_items_nothing_is_counted_that_came_after_the_training_part(
    model: ElasticModel, in_order: Dataset
) -> None:
    cut: Split = leave_one_out(in_order)
    exit = fit_counting(model, cut, ITEMS)
    found = evaluate_model(model, in_order, cut, part="validation", counting=exit, baselines=(), resamples=50)
    honest = count(cut.train, ITEMS, exit.tables.settings)
    expected = module._case_ndcg(cut.validation, ITEMS, honest.scores)
    assert (found.per_user["depth 0"]["ndcg@10"] == expected).all()
