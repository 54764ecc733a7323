"""The loss model: finds what is there, says nothing where there is nothing, and is the same online and offline."""

import numpy as np
import pytest

from fathom.selector.learned import LossModel, cross_fitted


def requests(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(3.0, 2.0, (count, 4))
    rows[rng.random((count, 4)) < 0.1] = np.nan
    rows[:, 3] = 7.0
    return rows


def test_a_loss_that_follows_a_feature_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    rows = requests(rng, 3000)
    signal = 0.1 * np.nan_to_num(rows[:, 0], nan=3.0)
    losses = np.column_stack([signal, np.zeros(3000)]) + rng.normal(0, 0.1, (3000, 2))
    model = LossModel.fit(rows, losses)
    fresh = requests(rng, 500)
    told = model.predict(fresh)
    assert np.corrcoef(told[:, 0], np.nan_to_num(fresh[:, 0], nan=3.0))[0, 1] > 0.95
    noise = LossModel.fit(rows, rng.normal(0, 1, (3000, 1)))
    assert noise.predict(fresh).std() < 0.06


def test_one_row_is_predicted_as_in_a_table_and_the_row_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    rows = requests(rng, 200)
    model = LossModel.fit(rows, rng.normal(0, 1, (200, 3)) + np.nan_to_num(rows[:, :1]))
    before = rows.copy()
    together = model.predict(rows)
    for row, losses in zip(rows, together, strict=True):
        np.testing.assert_allclose(model.predict(tuple(row)), losses, atol=1e-12)
    np.testing.assert_array_equal(rows, before)


def test_cross_fitted_losses_come_from_models_that_never_saw_the_request() -> None:
    rng = np.random.default_rng(2)
    rows, losses = requests(rng, 100), rng.normal(0, 1, (100, 1))
    told = cross_fitted(rows, losses)
    changed = losses.copy()
    changed[0] += 1000
    assert cross_fitted(rows, changed)[0] == pytest.approx(told[0])


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        LossModel((0.0,), (1.0,), (0.0,), ((1.0,),))
    with pytest.raises(ValueError, match="not positive"):
        LossModel((0.0,), (0.0,), (0.0,), ((1.0, 1.0),))
