"""One choice from everything: served and allowed, never deeper than wanted, in time, or refused for a reason."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.profile import DeviceProfile, load_profile, profile_names
from fathom.errors import DeadlineError, NotFoundError, OverloadError
from fathom.selector.choice import DepthReason
from fathom.selector.chooser import DepthChooser
from fathom.selector.features import Features
from fathom.selector.policy import LEAST_WEIGHT

PROFILES = [load_profile(name) for name in profile_names()]
CLOUD = load_profile("cloud")
ITEMS = np.array([1, 2, 3])
FEATURES = Features(*[math.nan] * len(Features._fields))
ticks = st.integers(0, 200).map(lambda n: n / 1024)


@dataclass
class Fixed:
    """Estimates that do not change: what waits, what each layer costs, and whether a probe is due."""

    time_s: float
    wait_s: float
    layer_s: float
    probe: bool = False

    def queue_s(self, depth: int) -> float:  # noqa: ARG002
        return self.wait_s

    def cost_s(self, depth: int, *, cached: bool = True) -> float:  # noqa: ARG002
        return depth * self.layer_s

    def may_probe(self, depth: int) -> bool:  # noqa: ARG002
        return self.probe


def never() -> tuple[Features, float]:
    raise AssertionError("this request needs no look")


def chooser(served: tuple[int, ...] = (4, 8, 12, 16)) -> DepthChooser:
    return DepthChooser(None, served, policy="rule", alpha=0.01)


def test_without_a_deadline_the_wanted_depth_stands() -> None:
    choice = chooser().choose(CLOUD, ITEMS, lambda: (FEATURES, 1.0))
    assert (choice.depth, choice.reason, choice.probe) == (CLOUD.deep, DepthReason.COMPLEX, False)


def test_what_cannot_be_in_time_is_refused_before_anybody_looks_at_it() -> None:
    with pytest.raises(DeadlineError, match="depth 4 needs"):
        chooser().choose(CLOUD, ITEMS, never, estimates=Fixed(0.001, 0.0, 1.0))
    with pytest.raises(OverloadError, match="too full for depth 4"):
        chooser().admit(CLOUD, None, Fixed(0.01, 1.0, 0.001))


def test_a_probe_runs_at_the_shallowest_depth_although_it_seems_too_late() -> None:
    choice = chooser().choose(CLOUD, ITEMS, lambda: (FEATURES, 1.0), estimates=Fixed(0.001, 0.0, 1.0, probe=True))
    assert (choice.depth, choice.reason, choice.probe) == (4, DepthReason.DEADLINE, True)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(PROFILES),
    st.sets(st.integers(1, 20), min_size=1, max_size=6),
    st.none() | st.integers(1, 20),
    st.floats(0, 1),
    st.none() | st.builds(Fixed, ticks, ticks, ticks, st.booleans()),
)
def test_a_choice_is_served_allowed_no_deeper_than_wanted_and_in_time(
    profile: DeviceProfile, served: set[int], fixed: int | None, complexity: float, estimates: Fixed | None
) -> None:
    depths = chooser(tuple(sorted(served)))

    def choose(estimates: Fixed | None):
        return depths.choose(profile, ITEMS, lambda: (FEATURES, complexity), fixed=fixed, estimates=estimates)

    allowed = {fixed} & served if fixed is not None else served & set(profile.depths)
    if not allowed:
        with pytest.raises(NotFoundError):
            choose(estimates)
        return
    wanted = choose(None)
    assert wanted.depth in allowed
    if estimates is None:
        return
    shallowest = min(allowed)
    late = LEAST_WEIGHT * estimates.wait_s + estimates.cost_s(shallowest) > estimates.time_s
    if late and not estimates.probe:
        with pytest.raises((DeadlineError, OverloadError)):
            choose(estimates)
        return
    choice = choose(estimates)
    assert choice.depth in allowed
    assert choice.depth <= wanted.depth
    assert choice.probe == late
    assert choice.probe or estimates.wait_s + estimates.cost_s(choice.depth) <= estimates.time_s
