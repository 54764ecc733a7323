"""Bits are spent in the order of the layers, and no way to spend them costs more than uniform bits."""

import numpy as np
import pytest

from fathom.benchmarks.experiments.mixed_precision import SIZES, cost, spend, ways

ORDER = [5, 2, 0, 1, 7, 6, 3, 4]


@pytest.mark.parametrize("bits", SIZES)
def test_every_way_costs_at_most_what_uniform_bits_cost_and_nearly_that(bits: int) -> None:
    for way, choices in ways(bits, ORDER, seed=0).items():
        for chosen in choices:
            assert sorted(chosen) == sorted(ORDER)
            spent = np.mean([cost(each) for each in chosen.values()])
            assert cost(bits) * 0.85 < spent <= cost(bits), way


def test_the_layers_that_come_first_get_the_most_bits() -> None:
    assert spend(ORDER, (4, 8), 6.5) == {5: 8, 2: 8, 0: 8, 1: 8, 7: 4, 6: 4, 3: 4, 4: 4}
    assert spend(ORDER[::-1], (4, 8), 6.5) == {5: 4, 2: 4, 0: 4, 1: 4, 7: 8, 6: 8, 3: 8, 4: 8}
    assert set(spend(ORDER, (2, 4, 8), 4.5).values()) == {2, 4, 8}
