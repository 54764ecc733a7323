"""A profile's rule: the shallow depth below its threshold, the deep one from there on."""

from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.profile import DeviceProfile, load_profile, profile_names
from fathom.selector.choice import Choice, DepthReason
from fathom.selector.policy import by_rule

fast = settings(deadline=None, max_examples=300)
PROFILES = [load_profile(name) for name in profile_names()]
EDGE = load_profile("edge")
ALL = (4, 8, 12, 16)
share = st.floats(0, 1)
depth_sets = st.sets(st.integers(1, 32), min_size=1, max_size=6)


def rule(complexity: float, profile: DeviceProfile, depths: Collection[int]) -> Choice:
    return by_rule(complexity, profile, depths, profile.threshold)


@pytest.mark.parametrize(("tier", "shallow", "deep"), [("mobile", 4, 8), ("edge", 8, 12), ("cloud", 12, 16)])
def test_each_tier_has_its_two_depths(tier: str, shallow: int, deep: int) -> None:
    profile = load_profile(tier)
    assert rule(0.0, profile, ALL).depth == shallow
    assert rule(1.0, profile, ALL).depth == deep


def test_why_is_a_sentence_with_the_numbers() -> None:
    assert rule(0.31, EDGE, ALL).why == "complexity 0.31 is below 0.50: depth 8 is enough for edge"
    assert rule(0.72, EDGE, ALL).why == "complexity 0.72 is at least 0.50: depth 12 for edge"
    assert rule(0.499, EDGE, ALL).why == "complexity 0.50 is just below 0.50: depth 8 is enough for edge"
    assert rule(0.2, EDGE, (4, 16)).why == (
        "complexity 0.20 is below 0.50: depth 4 for edge, in place of 8, which is not served here"
    )


def test_the_threshold_itself_is_complex() -> None:
    assert rule(EDGE.threshold, EDGE, ALL).reason is DepthReason.COMPLEX


@fast
@given(share, st.sampled_from(PROFILES), depth_sets)
def test_the_chosen_depth_is_the_nearest_that_is_served_and_allowed(
    complexity: float, profile: DeviceProfile, served: set[int]
) -> None:
    common = {profile.depths[0]} | served & set(profile.depths)
    choice = rule(complexity, profile, common)
    simple = complexity < profile.threshold
    wanted = profile.shallow if simple else profile.deep
    distance = min(abs(depth - wanted) for depth in common)
    assert choice.depth == max(depth for depth in common if abs(depth - wanted) == distance)
    assert choice.reason is (DepthReason.SIMPLE if simple else DepthReason.COMPLEX)
    assert choice.complexity == complexity
    assert f"depth {choice.depth} " in choice.why


@fast
@given(share, share, st.sampled_from(PROFILES), depth_sets)
def test_a_more_complex_request_is_never_answered_shallower(
    one: float, other: float, profile: DeviceProfile, served: set[int]
) -> None:
    common = {profile.depths[0]} | served & set(profile.depths)
    low, high = (rule(complexity, profile, common).depth for complexity in sorted((one, other)))
    assert low <= high
