"""The decision: always a served depth, the shallow one below the threshold, and the clock has the last word."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.profile import DeviceProfile, load_profile, profile_names
from fathom.errors import DeadlineError, NotFoundError, OverloadError
from fathom.selector.choice import Choice, DepthReason
from fathom.selector.policy import LEAST_WEIGHT, QUEUE_WEIGHT, choose, fit_deadline, obey

fast = settings(deadline=None, max_examples=300)
PROFILES = [load_profile(name) for name in profile_names()]
EDGE = load_profile("edge")
ALL = (4, 8, 12, 16)
share = st.floats(0, 1)
depth_sets = st.sets(st.integers(1, 32), min_size=1, max_size=6)
# Multiples of 1/1024 of a second: sums are exact, so the oracle below may compare them in another order.
ticks = st.integers(0, 200).map(lambda n: n / 1024)


@pytest.mark.parametrize(("tier", "shallow", "deep"), [("mobile", 4, 8), ("edge", 8, 12), ("cloud", 12, 16)])
def test_each_tier_has_its_two_depths(tier: str, shallow: int, deep: int) -> None:
    profile = load_profile(tier)
    assert choose(0.0, profile, ALL).depth == shallow
    assert choose(1.0, profile, ALL).depth == deep


def test_why_is_a_sentence_with_the_numbers() -> None:
    assert choose(0.31, EDGE, ALL).why == "complexity 0.31 is below 0.50: depth 8 is enough for edge"
    assert choose(0.72, EDGE, ALL).why == "complexity 0.72 is not below 0.50: depth 12 for edge"
    assert choose(0.499, EDGE, ALL).why == "complexity 0.50 is just below 0.50: depth 8 is enough for edge"
    assert choose(0.2, EDGE, (4, 16)).why == (
        "complexity 0.20 is below 0.50: depth 4 for edge, in place of 8, which is not served here"
    )
    assert obey(16, ALL).why == "depth 16 was asked for"


def test_the_threshold_itself_is_complex() -> None:
    assert choose(EDGE.threshold, EDGE, ALL).reason is DepthReason.COMPLEX


@fast
@given(share, st.sampled_from(PROFILES), depth_sets)
def test_the_chosen_depth_is_served_and_allowed_or_nothing_is(
    complexity: float, profile: DeviceProfile, served: set[int]
) -> None:
    if not served & set(profile.depths):
        with pytest.raises(NotFoundError, match=f"profile {profile.name} allows depths"):
            choose(complexity, profile, served)
        return
    decision = choose(complexity, profile, served)
    simple = complexity < profile.threshold
    wanted = profile.shallow if simple else profile.deep
    common = served & set(profile.depths)
    distance = min(abs(depth - wanted) for depth in common)
    assert decision.depth == max(depth for depth in common if abs(depth - wanted) == distance)
    assert decision.reason is (DepthReason.SIMPLE if simple else DepthReason.COMPLEX)
    assert decision.complexity == complexity
    assert f"depth {decision.depth} " in decision.why


@fast
@given(share, share, st.sampled_from(PROFILES), depth_sets)
def test_a_more_complex_request_is_never_answered_shallower(
    one: float, other: float, profile: DeviceProfile, served: set[int]
) -> None:
    served = served | {profile.depths[0]}
    low, high = (choose(complexity, profile, served).depth for complexity in sorted((one, other)))
    assert low <= high


def test_a_depth_that_is_asked_for_needs_no_complexity() -> None:
    decision = obey(16, ALL)
    assert (decision.depth, decision.reason, decision.complexity) == (16, DepthReason.FIXED, None)


def test_a_fixed_depth_that_is_not_served_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="depth 16 is not served here; there are 4, 8"):
        obey(16, (4, 8))


def fit(decision: Choice, **changes: Any) -> Choice:
    arguments: dict[str, Any] = {
        "time_s": 0.010,
        "queue_s": 0.002,
        "cost_p99_s": {4: 0.003, 8: 0.006, 12: 0.009, 16: 0.012},
        "allowed": ALL,
    }
    return fit_deadline(decision, **{**arguments, **changes})


DEEP = choose(1.0, EDGE, ALL)
SHALLOW = choose(0.0, EDGE, ALL)


def test_a_decision_that_fits_stands() -> None:
    assert fit(SHALLOW, queue_s=0.001) is SHALLOW


def test_a_decision_that_is_too_deep_becomes_the_deepest_that_fits() -> None:
    decision = fit(DEEP, queue_s=0.001)
    assert (decision.depth, decision.reason) == (8, DepthReason.DEADLINE)
    assert decision.why == "10.0 ms left, 1.0 ms of it in the queue: too little for depth 12, depth 8 needs 6.0 ms"
    assert decision.complexity == DEEP.complexity


def test_a_deadline_never_makes_a_request_deeper() -> None:
    with pytest.raises(DeadlineError):
        fit(SHALLOW, cost_p99_s={8: 1.0, 12: 0.001}, allowed=(8, 12))


def test_while_others_wait_only_the_shallowest_depth_may_use_all_the_time() -> None:
    # Depth 8 would end at 8 ms of 10, but 2 ms of queue count four times for it, and 1.25 times for depth 4.
    assert fit(DEEP, queue_s=0.002).depth == 4
    assert fit(DEEP, queue_s=0.0056).depth == 4
    with pytest.raises(OverloadError) as refused:
        fit(DEEP, queue_s=0.006)
    assert refused.value.retry_after_s == pytest.approx(0.0005)
    fixed = obey(8, ALL)
    assert fit(fixed, queue_s=0.0032) is fixed


def test_a_fixed_depth_is_never_replaced() -> None:
    with pytest.raises(DeadlineError, match=r"depth 16 needs 12.0 ms"):
        fit(obey(16, ALL))


def test_a_depth_without_a_measured_cost_never_fits() -> None:
    assert fit(DEEP, cost_p99_s={4: 0.001}).depth == 4
    with pytest.raises(DeadlineError, match="depth 12 has no measured cost"):
        fit(DEEP, cost_p99_s={})


def test_the_error_says_what_was_left_and_what_it_would_take() -> None:
    full = r"^4\.0 ms left, 2\.0 ms of it in the queue, which is too full for depth 4; try again in 1\.5 ms$"
    with pytest.raises(OverloadError, match=full):
        fit(DEEP, time_s=0.004)
    with pytest.raises(DeadlineError, match=r"^2\.0 ms left: depth 4 needs 3\.0 ms; allow more time$"):
        fit(DEEP, time_s=0.002)
    with pytest.raises(DeadlineError, match="the deadline has passed"):
        fit(DEEP, time_s=-1.0)


@fast
@given(
    st.sampled_from(ALL),
    ticks,
    ticks,
    st.dictionaries(st.sampled_from(ALL), ticks),
    st.sets(st.sampled_from(ALL)),
)
def test_the_deadline_rule_picks_the_deepest_depth_that_fits(
    wanted: int, left_s: float, queue_s: float, cost_p99_s: dict[int, float], allowed: set[int]
) -> None:
    decision = Choice(wanted, DepthReason.COMPLEX, "because", 0.7)
    candidates = {depth for depth in allowed | {wanted} if depth <= wanted and depth in cost_p99_s}
    weights = {depth: LEAST_WEIGHT if depth == min(candidates) else QUEUE_WEIGHT for depth in candidates}
    fitting = [depth for depth in candidates if cost_p99_s[depth] + weights[depth] * queue_s <= left_s]
    arguments: dict[str, Any] = {"time_s": left_s, "queue_s": queue_s}
    if not fitting:
        in_time_alone = bool(candidates) and cost_p99_s[min(candidates)] <= left_s
        with pytest.raises(OverloadError if in_time_alone else DeadlineError):
            fit_deadline(decision, **arguments, cost_p99_s=cost_p99_s, allowed=allowed)
        return
    found = fit_deadline(decision, **arguments, cost_p99_s=cost_p99_s, allowed=allowed)
    assert found.depth == max(fitting)
    assert (found is decision) == (found.depth == wanted)
