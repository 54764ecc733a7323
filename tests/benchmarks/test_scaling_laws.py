"""Laws are found where they hold, with intervals that tell how sure they are, and limits where they are reached."""

import numpy as np
import pytest

from fathom.benchmarks.systems.scaling_laws import Law, crossing, fit

SIZES = (10, 20, 50, 100, 200, 500, 1_000)


def test_a_law_that_holds_is_found_with_all_its_terms() -> None:
    law = fit({n: [200 + 3 * n + 0.01 * n * n] * 3 for n in SIZES}, (0, 1, 2))
    assert law is not None
    assert [each.value for each in law.coefficients] == pytest.approx([200, 3, 0.01])
    assert law.worst == pytest.approx(0, abs=1e-9)
    assert law.r2 == pytest.approx(1)
    assert law.largest == 1_000
    assert law(2_000) == pytest.approx(200 + 6_000 + 40_000)


def test_terms_of_millions_of_items_are_found_too() -> None:
    law = fit({m: [90 + 0.012 * m] for m in (1_682, 10_000, 100_000, 1_000_000)}, (0, 1))
    assert law is not None
    assert [each.value for each in law.coefficients] == pytest.approx([90, 0.012])


def test_a_law_is_the_same_on_processors_that_round_otherwise() -> None:
    def law_of(rounding: float) -> Law:
        law = fit({n: [(123.4567 + 1.2345678 * n) * (1 + rounding * (-1) ** n) + n**0.5] for n in SIZES}, (0, 1))
        assert law is not None
        return law

    assert law_of(0.0).coefficients == law_of(1e-12).coefficients


def test_small_and_large_sizes_count_alike() -> None:
    measured = {n: [100 + 2.0 * n] for n in SIZES}
    measured[1_000] = [2_100 * 1.1]
    law = fit(measured, (0, 1))
    assert law is not None
    # Absolute errors would follow the largest size to within a percent.
    assert law(10) == pytest.approx(120, rel=0.03)
    assert 0.04 < law.worst < 0.1


def test_intervals_come_from_the_repetitions_and_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        noise = rng.normal(1, 0.03, (len(SIZES), 5))
        law = fit({n: ((200 + 3 * n) * noise[place]).tolist() for place, n in enumerate(SIZES)}, (0, 1))
        assert law is not None
        assert law.coefficients[1].low < law.coefficients[1].high
        covered += law.coefficients[1].low <= 3 <= law.coefficients[1].high
    assert 0.9 <= covered / 200 <= 0.99


def test_there_is_no_law_without_a_size_to_contradict_it() -> None:
    assert fit({1: [1.0], 2: [2.0]}, (0, 1)) is None


def test_a_law_says_where_a_limit_is_reached_also_beyond_what_was_measured() -> None:
    law = fit({n: [5 + 2 * n] for n in SIZES}, (0, 1))
    assert law is not None
    assert law.reaches(105) == pytest.approx(50)
    assert law.reaches(1_000_005) == pytest.approx(500_000)
    assert law.reaches(1) == 0
    flat = fit({n: [5.0] for n in SIZES}, (0,))
    assert flat is not None
    assert flat.reaches(10) is None


def test_the_point_between_two_loads_at_which_a_limit_is_passed() -> None:
    assert crossing({1: 1.0, 10: 10.0, 100: 100.0}, 25) == pytest.approx(25)
    assert crossing({1: 1.0, 10: 10.0}, 25) is None
    assert crossing({1: 30.0, 10: 40.0}, 25) == 1
