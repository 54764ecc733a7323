"""Bounds hold at every look, agree with their closed forms, and the comparison of arms keeps their promise."""

import math

import numpy as np
import pytest

from fathom.experiments.comparison import Sample, adjusted, compare, inferiority, linearised, moments
from fathom.experiments.mismatch import log_bayes_factor, p_value
from fathom.experiments.sequential import half_width, log_evidence, mixture, one_sided_width

LOOKS = np.unique(np.geomspace(200, 20_000, 60).astype(int))


def test_the_interval_excludes_zero_exactly_when_the_evidence_reaches_one_over_alpha() -> None:
    for units in (200, 5_000, 100_000):
        for alpha in (0.01, 0.05, 0.1):
            width = half_width(units, expected=5_000, alpha=alpha)
            evidence = log_evidence(width, units, expected=5_000, alpha=alpha)
            assert evidence == pytest.approx(math.log(1 / alpha))


def test_the_interval_is_narrowest_about_where_it_was_asked_to_be() -> None:
    units = np.arange(200, 100_000)
    expected = [1_000, 10_000, 50_000]
    for most in expected:
        # In standard errors, an interval tuned for another number of units is wider here.
        widths = [half_width(most, expected=each, alpha=0.05) for each in expected]
        assert min(widths) == widths[expected.index(most)]
    assert mixture(1_000, 0.05) == pytest.approx((5.9915 + math.log(6.9915)) / 1_000, rel=1e-4)
    assert (one_sided_width(units, expected=10_000, alpha=0.05) < half_width(units, expected=10_000, alpha=0.05)).all()


def test_one_side_is_bounded_by_the_half_normal_mixture() -> None:
    for units, alpha in ((500, 0.05), (10_000, 0.01)):
        scale = units * mixture(10_000, 2 * alpha)
        x = one_sided_width(units, expected=10_000, alpha=alpha) * math.sqrt(scale / (scale + 1))
        capital = 2 / math.sqrt(scale + 1) * math.exp(x**2 / 2) * (1 + math.erf(x / math.sqrt(2))) / 2
        assert 1 / alpha <= capital < 1.3 / alpha


def paths(random: np.random.Generator, replications: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Standardised means of skewed values and how many there are, at every look, (replications, looks)."""
    values = random.exponential(size=(replications, LOOKS[-1])) - 1
    count = np.arange(1, LOOKS[-1] + 1)
    sums, squares = values.cumsum(axis=1), (values**2).cumsum(axis=1)
    means = (sums / count)[:, LOOKS - 1]
    spread = (squares / count)[:, LOOKS - 1] - means**2
    return means / np.sqrt(spread / LOOKS), np.broadcast_to(LOOKS, means.shape)


def test_looking_again_and_again_is_wrong_no_more_often_than_alpha_where_a_fixed_test_is() -> None:
    z, units = paths(np.random.default_rng(1))
    wrong = (np.abs(z) > half_width(units, expected=5_000, alpha=0.05)).any(axis=1).mean()
    one_sided = (z > one_sided_width(units, expected=5_000, alpha=0.05)).any(axis=1).mean()
    assert wrong <= 0.05
    assert one_sided <= 0.05
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.2


def test_a_ratio_has_the_error_that_resampling_its_users_has() -> None:
    random = np.random.default_rng(2)
    counts = random.poisson(3, 4_000) + 1.0
    totals = random.binomial(counts.astype(int), random.beta(2, 5, 4_000)).astype(float)
    found = moments(linearised(Sample(totals, counts)))
    assert found.mean == pytest.approx(totals.sum() / counts.sum())
    picks = random.integers(0, 4_000, (800, 4_000))
    resampled = totals[picks].sum(axis=1) / counts[picks].sum(axis=1)
    assert math.sqrt(found.squared_error) == pytest.approx(resampled.std(), rel=0.1)
    # Requests of one user are alike, so counting requests as independent would promise too much.
    naive = found.mean * (1 - found.mean) / counts.sum()
    assert found.squared_error > 1.3 * naive


def test_a_covariate_narrows_the_interval_and_its_absence_changes_nothing() -> None:
    random = np.random.default_rng(3)
    before = random.normal(size=(2, 3_000))
    values = 5 + before + random.normal(size=(2, 3_000)) * 0.5
    plain = compare(Sample(values[0]), Sample(values[1]), expected=5_000, alpha=0.05)
    helped = compare(Sample(values[0], None, before[0]), Sample(values[1], None, before[1]), expected=5_000, alpha=0.05)
    ratio = helped.treatment.squared_error / plain.treatment.squared_error
    assert ratio == pytest.approx(0.2, abs=0.03)  # 1 - correlation squared
    assert helped.variance_removed == pytest.approx(0.8, abs=0.03)
    for useless in (np.full(3_000, np.nan), np.ones(3_000)):
        same = compare(Sample(values[0], None, useless), Sample(values[1], None, useless), expected=5_000, alpha=0.05)
        assert same == plain
    assert compare(Sample(values[0], None, before[0]), Sample(values[1]), expected=5_000, alpha=0.05) == plain


def test_an_adjusted_difference_covers_the_truth_at_every_look() -> None:
    random, missed = np.random.default_rng(4), 0
    for _ in range(150):
        before = random.normal(size=(2, 4_000))
        values = random.poisson(np.exp(before / 2)) + np.array([[0.1], [0.0]])
        before[:, ::3] = np.nan
        for units in (200, 400, 800, 1_600, 2_800, 4_000):
            one, other = (Sample(values[arm, :units], None, before[arm, :units]) for arm in (0, 1))
            found = compare(one, other, expected=4_000, alpha=0.05)
            if not found.low <= 0.1 <= found.high:
                missed += 1
                break
    assert missed <= 7


def test_the_uplift_is_bounded_where_the_difference_is() -> None:
    random = np.random.default_rng(5)
    one, other = Sample(random.normal(2.2, 1, 5_000)), Sample(random.normal(2.0, 1, 5_000))
    found = compare(one, other, expected=10_000, alpha=0.05)
    assert found.uplift_low is not None
    assert found.uplift_high is not None
    assert found.uplift_low < 0.1 < found.uplift_high
    assert (found.uplift_low > 0) == (found.low > 0)
    assert found.p_value < 0.05
    around_zero = compare(Sample(one.totals), Sample(random.normal(0, 1, 5_000)), expected=10_000, alpha=0.05)
    assert around_zero.uplift_low is None
    few = compare(Sample(one.totals[:50]), other, expected=10_000, alpha=0.05)
    assert (few.low, few.p_value) == (-math.inf, 1.0)


def test_guard_rails_are_broken_kept_or_open() -> None:
    random = np.random.default_rng(6)

    def drawn(mean: float, units: int = 5_000) -> Sample:
        return Sample(random.normal(mean, 20, units))

    def state(one: Sample, other: Sample, lower: bool) -> str:
        found = inferiority(one, other, margin=0.1, lower_is_better=lower, expected=10_000, alpha=0.05)
        return found.state

    assert state(drawn(101), drawn(100), True) == "kept"
    assert state(drawn(120), drawn(100), True) == "broken"
    assert state(drawn(120), drawn(100), False) == "kept"
    assert state(drawn(80), drawn(100), False) == "broken"
    assert state(drawn(110), drawn(100), True) == "open"
    assert state(drawn(120, 50), drawn(100), True) == "open"


def test_the_evidence_for_other_shares_is_that_of_the_beta_binomial() -> None:
    def sequence(counts: tuple[int, ...], shares: tuple[float, ...]) -> float:
        """The same, unit by unit: the predicted probability of each over that of its share."""
        total, seen = 0.0, [0] * len(shares)
        for arm, count in enumerate(counts):
            for _ in range(count):
                total += math.log((1_000 * shares[arm] + seen[arm]) / (1_000 + sum(seen)) / shares[arm])
                seen[arm] += 1
        return total

    for counts, shares in (((60, 40), (0.5, 0.5)), ((10, 30, 80), (0.2, 0.3, 0.5))):
        assert log_bayes_factor(counts, shares) == pytest.approx(sequence(counts, shares))
    assert p_value((5_000, 5_000), (0.3, 0.3)) == 1.0
    assert p_value((5_500, 4_500), (0.3, 0.3)) < 1e-10
    assert p_value((5, 1), (0.5, 0.0)) < 1e-10


def test_equal_shares_raise_the_alarm_no_more_often_than_allowed() -> None:
    random = np.random.default_rng(7)
    first = random.binomial(200, 0.5, (400, 50)).cumsum(axis=1)
    wrong = [
        any(p_value((int(n), 200 * (i + 1) - int(n)), (0.5, 0.5)) < 0.05 for i, n in enumerate(row)) for row in first
    ]
    assert np.mean(wrong) <= 0.05


def test_values_of_arms_without_units_are_no_error() -> None:
    empty = Sample(np.zeros(0), np.zeros(0))
    one, other = adjusted(empty, Sample(np.ones(3), np.ones(3)))
    assert (len(one), len(other)) == (0, 3)
    assert compare(empty, Sample(np.ones(200), np.ones(200)), expected=1_000, alpha=0.05).p_value == 1.0
