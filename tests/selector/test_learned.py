"""Learners of losses: they find what is there, and are the same for one request as for many."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from fathom.selector.learned import LossModel, cross_fitted, folds
from fathom.selector.net import NetModel
from fathom.selector.routing import Model
from fathom.selector.tables import BINS, TableModel

LEARNERS = (LossModel, TableModel, NetModel)
Learner = type[LossModel] | type[TableModel] | type[NetModel]


def requests(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(3.0, 2.0, (count, 4))
    rows[rng.random((count, 4)) < 0.1] = np.nan
    rows[:, 3] = 7.0
    return rows


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_loss_that_follows_a_feature_is_found_and_noise_is_not(learner: Learner) -> None:
    rng = np.random.default_rng(0)
    rows, users = requests(rng, 3000), np.arange(3000)
    signal = 0.1 * np.nan_to_num(rows[:, 0], nan=3.0)
    losses = np.column_stack([signal, np.zeros(3000)]) + rng.normal(0, 0.1, (3000, 2))
    model = learner.fit(rows, losses, users)
    assert model.sizes == (4, 2)
    fresh = requests(rng, 500)
    told = model.predict(fresh)
    assert np.corrcoef(told[:, 0], np.nan_to_num(fresh[:, 0], nan=3.0))[0, 1] > 0.94
    noise = learner.fit(rows, rng.normal(0, 1, (3000, 1)), users)
    # A net bends further than the others, still less than a fifth of the noise.
    assert noise.predict(fresh).std() < (0.2 if learner is NetModel else 0.1)


@pytest.mark.parametrize("learner", LEARNERS)
def test_one_row_is_predicted_as_in_a_table_and_the_row_is_left_alone(learner: Learner) -> None:
    rng = np.random.default_rng(1)
    rows = requests(rng, 200)
    model = learner.fit(rows, rng.normal(0, 1, (200, 3)) + np.nan_to_num(rows[:, :1]), np.arange(200))
    before = rows.copy()
    together = model.predict(rows)
    for row, losses in zip(rows, together, strict=True):
        np.testing.assert_allclose(model.predict(tuple(row)), losses, atol=1e-12)
        np.testing.assert_allclose(model.predict_one(row.tolist()), losses, atol=1e-12)
    np.testing.assert_array_equal(rows, before)


def test_what_lies_far_out_or_is_unknown_counts_in_one_row_as_in_many() -> None:
    rng = np.random.default_rng(2)
    model = LossModel.fit(requests(rng, 100), rng.normal(0, 1, (100, 2)))
    for row in ([np.inf, -np.inf, np.nan, 7.0], [1e300, -1e300, 0.0, -np.nan], [3.0, 3.0, 3.0, 3.0]):
        np.testing.assert_allclose(model.predict_one(row), model.predict(row), atol=1e-12)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_model_is_read_back_as_what_it_is(learner: Learner) -> None:
    rng = np.random.default_rng(2)
    rows = requests(rng, 60)
    model = learner.fit(rows, rng.normal(0, 1, (60, 2)), np.arange(60))
    adapter: TypeAdapter[Model] = TypeAdapter(Model)
    again = adapter.validate_json(adapter.dump_json(model))
    assert again == model
    assert type(again) is learner


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_request_or_two_are_enough(learner: Learner, count: int) -> None:
    rows = np.full((count, 4), np.nan)
    model = learner.fit(rows, np.full((count, 1), 0.5), np.arange(count))
    assert model.predict(rows)[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_the_steps_of_a_table_only_rise_or_only_fall() -> None:
    rng = np.random.default_rng(3)
    rows = rng.uniform(-1, 1, (4000, 2))
    losses = np.column_stack([np.sign(rows[:, 0]) - rows[:, 1], rows[:, 0] ** 3]) + rng.normal(0, 0.3, (4000, 2))
    model = TableModel.fit(rows, losses, np.arange(4000))
    steps = np.diff(np.array(model.steps)[:, :, :BINS], axis=-1)
    assert (steps[0, 0] >= 0).all()
    assert (steps[0, 1] <= 0).all()
    assert ((steps >= 0).all(axis=-1) | (steps <= 0).all(axis=-1)).all()


def test_a_net_follows_what_neither_squares_nor_tables_can() -> None:
    rng = np.random.default_rng(4)
    rows, fresh = rng.normal(0, 1, (3000, 3)), rng.normal(0, 1, (1000, 3))
    losses = np.sign(rows[:, :1] * rows[:, 1:2]) + rng.normal(0, 0.3, (3000, 1))

    def correlation(learner: Learner) -> float:
        told = learner.fit(rows, losses, np.arange(3000)).predict(fresh)[:, 0]
        return float(np.nan_to_num(np.corrcoef(told, np.sign(fresh[:, 0] * fresh[:, 1]))[0, 1]))

    assert correlation(NetModel) > 0.8
    assert correlation(LossModel) < 0.3


def test_cross_fitted_losses_come_from_models_that_never_saw_the_user() -> None:
    rng = np.random.default_rng(2)
    rows, losses, users = requests(rng, 100), rng.normal(0, 1, (100, 1)), np.arange(100) // 4
    told = cross_fitted(LossModel.fit, rows, losses, users)
    changed = losses.copy()
    changed[:4] += 1000
    np.testing.assert_allclose(cross_fitted(LossModel.fit, rows, changed, users)[:4], told[:4])


def test_a_users_requests_are_in_one_fold_and_every_request_is_in_one() -> None:
    users = np.random.default_rng(5).integers(0, 30, 200)
    parts = list(folds(users))
    assert np.sort(np.concatenate([fold for _, fold in parts])).tolist() == list(range(200))
    for rest, fold in parts:
        assert not set(users[rest]) & set(users[fold])
        assert len(rest) + len(fold) == 200


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        LossModel((0.0,), (1.0,), (0.0,), ((1.0,),))
    with pytest.raises(ValueError, match="not positive"):
        LossModel((0.0,), (0.0,), (0.0,), ((1.0, 1.0),))
    steps, edges = (0.0,) * (BINS + 1), (0.0,) * (BINS - 1)
    with pytest.raises(ValueError, match="fit together"):
        TableModel((edges,), ((steps, steps),), (0.0,))
    with pytest.raises(ValueError, match="edges and"):
        TableModel((edges[1:],), ((steps,),), (0.0,))
    with pytest.raises(ValueError, match="not positive"):
        NetModel((0.0,), (0.0,), ((1.0,),), (0.0,), ((1.0,),), (0.0,))
    with pytest.raises(ValueError, match="hidden and bias"):
        NetModel((0.0,), (1.0,), ((1.0,),), (0.0, 0.0), ((1.0,),), (0.0,))
    with pytest.raises(ValueError, match="out does not fit"):
        NetModel((0.0,), (1.0,), ((1.0,),), (0.0,), ((1.0,),), (0.0, 0.0))
