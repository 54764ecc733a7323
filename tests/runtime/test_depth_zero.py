"""What depth 0 takes is measured, and a fair chance is taken where nothing would be sooner."""

import time
from pathlib import Path

import numpy as np
import pytest

from fathom.runtime import depth_zero
from fathom.runtime.bundle import Bundle
from fathom.runtime.depth_zero import DepthZero
from fathom.runtime.item_filter import ItemFilter

HISTORY = np.array([1, 2, 3])


@pytest.fixture
def zero(synthetic_bundle: Path) -> DepthZero:
    counting = Bundle.open(synthetic_bundle).counting
    assert counting is not None
    found = DepthZero(counting)
    found.measure(20)
    return found


def test_the_cost_is_measured_at_the_start_and_learned_from_every_answer(zero: DepthZero) -> None:
    before = zero.cost_s
    assert 1e-6 < before < 0.1
    for _ in range(50):
        zero.answer(HISTORY, 5, ItemFilter(), time.monotonic() - 1.0)
    assert zero.cost_s > 2 * before


def test_what_half_of_the_answers_keep_to_is_worth_a_try(zero: DepthZero) -> None:
    zero.answer(HISTORY, 5, ItemFilter(), time.monotonic())
    now_s = time.monotonic()
    assert zero.may_try(now_s, zero.cost_s)
    assert not zero.may_try(now_s, 1e-7)
    # Long after the last answer, for what that shows.
    assert zero.may_try(now_s + 2 * depth_zero.TRY_AFTER_S, 1e-7)
    assert not zero.may_try(now_s + 2 * depth_zero.TRY_AFTER_S, 0.0)


def test_an_estimate_that_is_far_too_high_is_corrected_by_one_answer_after_a_pause(zero: DepthZero) -> None:
    for _ in range(200):
        zero.answer(HISTORY, 5, ItemFilter(), time.monotonic() - 1.0)
    assert zero.cost_s > 0.1
    zero._ended_s -= 2 * depth_zero.TRY_AFTER_S
    zero.answer(HISTORY, 5, ItemFilter(), time.monotonic())
    assert zero.cost_s < 0.1
