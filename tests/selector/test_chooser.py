"""One decision: always a served depth, as the policy wants it, and the clock has the last word."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.profile import DeviceProfile, load_profile, profile_names
from fathom.errors import ConfigError, DeadlineError, NotFoundError, OverloadError
from fathom.runtime.bundle import Bundle
from fathom.selector.certificate import Certificate, Claim, Promise
from fathom.selector.choice import Choice, DepthReason, DepthRequest, PolicyName
from fathom.selector.chooser import LEAST_WEIGHT, QUEUE_WEIGHT, DepthChooser
from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import Learned, Mixture, Routing, coin

fast = settings(deadline=None, max_examples=300)
DEPTHS = (4, 8, 12, 16)
COUNTED = (0, *DEPTHS)
CLOUD, EDGE = load_profile("cloud"), load_profile("edge")
PROFILES = [load_profile(name) for name in profile_names()]
#: Whatever a depth costs.
PATIENT = {"latency_budget_ms": 1e6}
UNKNOWN = Features(*[math.nan] * len(Features._fields))
ITEMS = np.array([1, 2, 3])
share = st.floats(0, 1)
# Multiples of 1/1024 of a second: sums are exact, so the oracle below may compare them in another order.
ticks = st.integers(0, 200).map(lambda n: n / 1024)


@dataclass
class Clock:
    """Estimates as a test says; a depth without a cost never fits, and depth 0 has no queue."""

    time_s: float = 0.010
    queue: float = 0.002
    costs: dict[int, float] = field(default_factory=lambda: {4: 0.003, 8: 0.006, 12: 0.009, 16: 0.012})
    probing: bool = False
    care: float = 1.0
    medians: dict[int, float] = field(default_factory=dict)
    behind: bool = False

    def queue_s(self, depth: int) -> float:
        return self.queue if depth else 0.0

    def cost_s(self, depth: int, *, care: float = 1.0) -> float:
        p99_s = self.costs.get(depth, math.inf)
        return p99_s if care == 1 else p99_s + (1 - care) * (self.medians.get(depth, p99_s) - p99_s)

    def may_probe(self, depth: int) -> bool:  # noqa: ARG002
        return self.probing


def request(
    complexity: float = 1.0, profile: DeviceProfile = CLOUD, items: np.ndarray = ITEMS, **changes: Any
) -> DepthRequest:
    return DepthRequest(profile, items, lambda **_: (UNKNOWN, complexity), **changes)


def never(**_: bool) -> tuple[Features, float]:
    raise AssertionError("this request needs no look at it")


def chooser(
    certificate: Certificate | None = None, served: tuple[int, ...] = DEPTHS, policy: PolicyName = "auto"
) -> DepthChooser:
    return DepthChooser(certificate, served, policy=policy, alpha=0.01)


def certificate(routing: Routing, agreement: float | None = 0.9) -> Certificate:
    claim = Claim(routing.depths, routing.policy, 0.01, 100, routing, 1.0, 0.5, agreement)
    return Certificate(3, {"quality": Promise(0.01, 0.1, "2026-01-01", "d", "test")}, {}, {}, (claim,))


@pytest.fixture(scope="module")
def bundle(certified_bundle: Path) -> Bundle:
    return Bundle.open(certified_bundle)


# Policies


@pytest.mark.parametrize(
    ("policy", "profile", "reasons"),
    [
        ("auto", CLOUD, {DepthReason.CERTIFIED}),
        ("auto", EDGE, {DepthReason.DEEPEST}),
        ("certified", CLOUD, {DepthReason.CERTIFIED}),
        ("certified", EDGE, {DepthReason.DEEPEST}),
        ("rule", CLOUD, {DepthReason.SIMPLE, DepthReason.COMPLEX}),
        ("deepest", CLOUD, {DepthReason.DEEPEST}),
    ],
)
def test_every_policy_decides_as_it_says(
    bundle: Bundle, policy: PolicyName, profile: Any, reasons: set[DepthReason]
) -> None:
    choosing = chooser(bundle.certificate, policy=policy)
    rng = np.random.default_rng(7)
    choices = [
        choosing.choose(request(complexity, profile, rng.integers(0, 50, 5))) for complexity in np.linspace(0, 1, 50)
    ]
    assert {each.reason for each in choices} == reasons
    if reasons == {DepthReason.DEEPEST}:
        assert {each.depth for each in choices} == {profile.depths[-1]}
    assert all(each.why for each in choices)
    assert choosing.policy(profile).words(profile)
    fixed = choosing.choose(DepthRequest(profile, ITEMS, never, fixed=8))
    assert (fixed.depth, fixed.reason, fixed.complexity) == (8, DepthReason.FIXED, None)
    assert fixed.why == "depth 8 was requested"


def test_without_a_certificate_auto_is_the_deepest_depth_and_certified_refuses_to_start() -> None:
    auto, certified = (chooser(policy=policy) for policy in ("auto", "certified"))
    choice = auto.choose(DepthRequest(CLOUD, ITEMS, never))
    assert (choice.depth, choice.reason) == (16, DepthReason.DEEPEST)
    assert choice.why == "depth 16 is the deepest for cloud (nothing else is certified)"
    assert auto.policy(CLOUD).words(CLOUD) == "always depth 16 (nothing else is certified)"
    assert chooser(policy="deepest").policy(CLOUD).words(CLOUD) == "always depth 16"
    auto.require(CLOUD)
    with pytest.raises(ConfigError, match="nothing is certified for the depths of profile cloud-cpu"):
        certified.require(CLOUD)


@pytest.mark.parametrize("policy", ["auto", "certified", "rule", "deepest"])
def test_a_depth_that_is_not_served_is_not_found(policy: PolicyName) -> None:
    few = chooser(served=(1, 2), policy=policy)
    for clock in (None, Clock()):
        with pytest.raises(NotFoundError, match=r"cloud-cpu allows depths 0, 4, 8, 12, 16, but this bundle .* 1, 2"):
            few.choose(DepthRequest(CLOUD, ITEMS, never, estimates=clock))
        with pytest.raises(NotFoundError, match="depth 16 is not served here; served: 1, 2"):
            few.choose(DepthRequest(CLOUD, ITEMS, never, fixed=16, estimates=clock))
    assert few.choose(DepthRequest(CLOUD, ITEMS, never, fixed=2)).depth == 2


def test_a_claim_is_only_for_exactly_its_depths(bundle: Bundle) -> None:
    assert chooser(bundle.certificate).policy(CLOUD).certified
    assert not chooser(bundle.certificate, (4, 8, 12)).policy(CLOUD).certified


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_profile_whose_claim_does_not_hold_gets_its_deepest_depth_and_never_the_rule(profile: DeviceProfile) -> None:
    sets = {each.depths[1:] for each in PROFILES}
    claims = tuple(Claim(depths, "mixture", 0.01, 100, needed=500) for depths in sets)
    tested = replace(certificate(Mixture("mixture", DEPTHS, (1.0, 0.0, 0.0, 0.0))), claims=claims)
    choice = chooser(tested, COUNTED).choose(DepthRequest(profile, ITEMS, never))
    assert (choice.depth, choice.reason) == (profile.depths[-1], DepthReason.DEEPEST)


@pytest.mark.parametrize(("time_s", "depth"), [(math.inf, 16), (0.030, 16), (0.018, 12), (0.015, 8), (0.006, 4)])
def test_without_a_certificate_depth_still_falls_as_time_runs_out(time_s: float, depth: int) -> None:
    assert chooser().choose(DepthRequest(CLOUD, ITEMS, never, estimates=Clock(time_s))).depth == depth


def test_profiles_whose_served_depths_are_the_same_share_a_monitor_and_each_is_named_by_its_own_tier() -> None:
    certified = chooser(certificate(Mixture("mixture", (4, 8), (0.5, 0.5))), (4, 8))
    assert certified.policy(CLOUD).monitor is certified.policy(EDGE).monitor is not None
    deepest = chooser(policy="deepest", served=(4, 8, 12))
    other = EDGE.model_copy(update={"tier": "mobile"})
    assert [deepest.choose(request(profile=each)).why.split()[-1] for each in (EDGE, other)] == ["edge", "mobile"]


def test_a_routed_request_says_what_it_is_to_be_compared_with_until_the_alarm(bundle: Bundle) -> None:
    certified = chooser(bundle.certificate)
    monitor = certified.policy(CLOUD).monitor
    assert monitor is not None
    assert certified.choose(request()).agreement_check == (16, monitor)
    while not monitor.alarm:
        monitor.add([0.0])
    choice = certified.choose(DepthRequest(CLOUD, ITEMS, never))
    assert (choice.depth, choice.reason, choice.agreement_check) == (16, DepthReason.FALLBACK, None)
    unwatched = chooser(certificate(Mixture("mixture", DEPTHS, (0.0, 0.0, 0.0, 1.0)), None))
    assert unwatched.choose(request()).agreement_check is None


def model(rng: np.random.Generator, features: int, targets: int) -> LossModel:
    weights = tuple(tuple(rng.normal(size=2 * features).tolist()) for _ in range(targets))
    return LossModel((0.5,) * features, (0.3,) * features, tuple(rng.normal(size=targets).tolist()), weights)


@fast
@given(st.integers(0, 10_000), st.sampled_from(["mixture", "learned"]))
def test_a_request_gets_the_depth_that_its_certificate_assumed(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    count = len(Features._fields)
    routing: Routing = {
        "mixture": lambda: Mixture("mixture", DEPTHS, tuple(rng.dirichlet(np.ones(4)).tolist())),
        "learned": lambda: Learned("learned", DEPTHS, 0.2, (0.25, 0.5, 0.75, 1.0), model(rng, count, 3)),
    }[kind]()
    features, complexity, items = Features(*rng.random(count).tolist()), float(rng.random()), rng.integers(0, 50, 5)
    choice = chooser(certificate(routing)).choose(DepthRequest(CLOUD, items, lambda **_: (features, complexity)))
    assert (choice.reason, choice.complexity) == (DepthReason.CERTIFIED, None if kind == "mixture" else complexity)
    assert choice.why.endswith(f"as certified: {routing.words}")
    (chances,) = routing.probabilities(np.array([features]))
    place = DEPTHS.index(choice.depth)
    if kind == "mixture":
        assert chances[:place].sum() <= coin(items) <= chances[: place + 1].sum()
    else:
        assert chances[place] == 1


# Deadlines


def fit(clock: Clock | None, complexity: float = 1.0, **changes: Any) -> Choice:
    return chooser(policy="rule").choose(request(complexity, EDGE, estimates=clock, **changes))


def test_without_a_deadline_the_choice_stands() -> None:
    assert fit(None).depth == 12


def test_a_choice_that_fits_stands() -> None:
    assert fit(Clock(queue=0.001), 0.0) == fit(None, 0.0)


def test_a_choice_that_is_too_deep_becomes_the_deepest_that_fits() -> None:
    choice = fit(Clock(queue=0.001), 0.72)
    assert (choice.depth, choice.reason, choice.complexity) == (8, DepthReason.DEADLINE, 0.72)
    assert choice.why == "10.0 ms left, 1.0 ms of it in the queue: too little for depth 12, depth 8 needs 6.0 ms"


def test_a_deadline_never_makes_a_request_deeper() -> None:
    with pytest.raises(DeadlineError):
        chooser(served=(8, 12), policy="rule").choose(request(0.0, EDGE, estimates=Clock(costs={8: 1.0, 12: 0.001})))


def test_while_others_wait_only_the_shallowest_depth_may_use_all_the_time() -> None:
    # Depth 8 would end at 8 ms of 10, but 2 ms of queue count four times for it, and 1.25 times for depth 4.
    for queue_s in (0.002, 0.0056):
        choice = chooser(policy="rule").choose(DepthRequest(EDGE, ITEMS, never, estimates=Clock(queue=queue_s)))
        assert (choice.depth, choice.reason, choice.complexity) == (4, DepthReason.DEADLINE, None)
    assert choice.why == "10.0 ms left, 5.6 ms of it in the queue: too little for more than depth 4, which needs 3.0 ms"
    with pytest.raises(OverloadError) as refused:
        fit(Clock(queue=0.006))
    assert refused.value.retry_after_s == pytest.approx(0.0005)
    fixed = fit(Clock(queue=0.0032), fixed=8)
    assert (fixed.depth, fixed.reason) == (8, DepthReason.FIXED)


def test_with_time_to_spare_it_is_enough_that_an_answer_may_be_in_time() -> None:
    clock = Clock(time_s=0.010, queue=0.003, costs={4: 0.009}, medians={4: 0.005}, care=0.0)
    assert fit(clock, fixed=4).depth == 4
    assert fit(clock).depth == 4
    # Half as careful: 7 ms, and the queue 1.125 times.
    with pytest.raises(OverloadError, match=r"too full for depth 4; try again in 0\.3"):
        fit(replace(clock, care=0.5), fixed=4)
    with pytest.raises(DeadlineError, match=r"depth 4 needs 5\.0 ms"):
        fit(replace(clock, time_s=0.004), fixed=4)
    with pytest.raises(OverloadError):
        fit(replace(clock, care=1.0), fixed=4)


def test_what_depth_0_can_answer_for_sure_is_not_left_to_chance() -> None:
    chancy = Clock(queue=0.003, costs={0: 0.0001, 4: 0.009}, medians={4: 0.005}, care=0.0)
    choice = chooser(served=COUNTED).choose(request(profile=EDGE, estimates=chancy))
    assert (choice.depth, choice.reason) == (0, DepthReason.DEADLINE)
    assert chooser(served=COUNTED).choose(request(profile=EDGE, fixed=4, estimates=chancy)).depth == 4


def test_a_fixed_depth_is_never_replaced() -> None:
    with pytest.raises(DeadlineError, match=r"depth 16 needs 12.0 ms"):
        fit(Clock(), fixed=16)


def test_a_depth_without_a_measured_cost_never_fits() -> None:
    assert fit(Clock(costs={4: 0.001})).depth == 4
    with pytest.raises(DeadlineError, match="depth 4 needs"):
        fit(Clock(costs={}))


def test_the_error_says_what_was_left_and_what_it_would_take() -> None:
    full = r"^4\.0 ms left, 2\.0 ms of it in the queue, which is too full for depth 4; try again in 1\.5 ms$"
    with pytest.raises(OverloadError, match=full):
        fit(Clock(time_s=0.004))
    with pytest.raises(DeadlineError, match=r"^2\.0 ms left: depth 4 needs 3\.0 ms; allow more time$"):
        fit(Clock(time_s=0.002))
    with pytest.raises(DeadlineError, match="the deadline has passed"):
        fit(Clock(time_s=-1.0))


def test_what_cannot_be_in_time_is_refused_without_a_look_at_it() -> None:
    late = DepthRequest(EDGE, ITEMS, never, estimates=Clock(time_s=0.001))
    with pytest.raises(DeadlineError):
        chooser().choose(late)


@fast
@given(
    complexity=share,
    profile=st.sampled_from([profile.model_copy(update=PATIENT) for profile in PROFILES]),
    served=st.sets(st.sampled_from((0, *DEPTHS, 3, 6))),
    policy=st.sampled_from(["auto", "rule", "deepest"]),
    fixed=st.none() | st.sampled_from((0, *DEPTHS, 5)),
    clock=st.builds(
        Clock,
        time_s=ticks,
        queue=ticks,
        costs=st.dictionaries(st.sampled_from((0, *DEPTHS)), ticks),
        probing=st.booleans(),
        care=st.sampled_from((0.0, 0.5, 1.0)),
        medians=st.dictionaries(st.sampled_from(DEPTHS), ticks),
    ),
)
def test_the_deadline_picks_the_deepest_depth_that_fits_and_refuses_only_what_the_shallowest_would_miss(
    complexity: float, profile: DeviceProfile, served: set[int], policy: PolicyName, fixed: int | None, clock: Clock
) -> None:
    choosing = chooser(served=tuple(sorted(served)), policy=policy)
    allowed = sorted(served & ({fixed} if fixed is not None else set(profile.depths) - {0}))
    counts = fixed is None and 0 in served
    asked = request(complexity, profile, fixed=fixed)
    if not allowed:
        with pytest.raises(NotFoundError):
            choosing.choose(asked)
        return
    wanted = choosing.choose(asked)
    assert wanted.depth in allowed
    candidates = [depth for depth in allowed if depth <= wanted.depth]
    care = 1.0 if counts else clock.care
    fitting = [d for d in candidates[1:] if clock.cost_s(d) + QUEUE_WEIGHT * clock.queue_s(d) <= clock.time_s]
    least_s = clock.cost_s(allowed[0], care=care)
    if least_s + (1 + care * (LEAST_WEIGHT - 1)) * clock.queue_s(allowed[0]) <= clock.time_s:
        fitting.insert(0, allowed[0])
    timed = asked._replace(estimates=clock)
    if allowed[0] not in fitting and counts and (clock.cost_s(0) <= clock.time_s or clock.probing):
        choosing.admit(profile, fixed, clock)
        found = choosing.choose(timed)
        assert (found.depth, found.reason, found.probe) == (0, DepthReason.DEADLINE, clock.probing)
        return
    if allowed[0] not in fitting and not clock.probing:
        alone = least_s <= clock.time_s and not counts
        for refused in (lambda: choosing.choose(timed), lambda: choosing.admit(profile, fixed, clock)):
            with pytest.raises(OverloadError if alone else DeadlineError):
                refused()
        return
    choosing.admit(profile, fixed, clock)
    found = choosing.choose(timed)
    assert found.depth == max(fitting, default=allowed[0])
    assert found.probe == (not fitting and found.depth > 0)
    if found.depth != wanted.depth or found.complexity != wanted.complexity:
        assert (found.reason, found.complexity) in [(DepthReason.DEADLINE, each) for each in (None, wanted.complexity)]
    else:
        assert found._replace(probe=False) == wanted


# The profile's latency budget


@pytest.mark.parametrize(("budget_ms", "depth"), [(12, 16), (11.9, 12), (9, 12), (5, 4), (1, 4)])
@pytest.mark.parametrize("time_s", [0.1, math.inf])
def test_the_deepest_depth_that_keeps_to_the_latency_budget_answers_or_the_shallowest(
    budget_ms: float, depth: int, time_s: float
) -> None:
    profile = CLOUD.model_copy(update={"latency_budget_ms": budget_ms})
    found = chooser().choose(request(profile=profile, estimates=Clock(time_s=time_s)))
    assert found.depth == depth
    if depth < 16:
        assert found.reason is DepthReason.DEADLINE
        allows = f"more than the {budget_ms:g} ms that cloud-cpu allows"
        assert found.why == f"depth 16 needs 12.0 ms, {allows}: depth {depth}"


def test_a_depth_that_was_asked_for_may_exceed_the_latency_budget() -> None:
    profile = CLOUD.model_copy(update={"latency_budget_ms": 1})
    assert chooser().choose(request(profile=profile, fixed=16, estimates=Clock(time_s=math.inf))).depth == 16


# Without a deadline


def patient(queue_s: float, *, served: tuple[int, ...] = DEPTHS, fixed: int | None = None) -> Choice:
    clock = Clock(time_s=math.inf, queue=queue_s, costs=dict.fromkeys(DEPTHS, 60.0))
    profile = EDGE.model_copy(update=PATIENT)
    return chooser(served=served, policy="rule").choose(request(1.0, profile, fixed=fixed, estimates=clock))


def test_without_a_deadline_the_work_that_waits_makes_requests_shallow_and_then_refuses_them() -> None:
    assert patient(0.5).depth == 12
    shallow = patient(0.51)
    assert (shallow.depth, shallow.reason, shallow.complexity) == (4, DepthReason.DEADLINE, None)
    assert shallow.why == "510.0 ms of work are waiting: too much for more than depth 4"
    assert patient(2.0).depth == 4
    full = r"^2200\.0 ms of work are waiting, more than 2000\.0 ms; try again in 200\.0 ms$"
    with pytest.raises(OverloadError, match=full) as refused:
        patient(2.2)
    assert refused.value.retry_after_s == pytest.approx(0.2)


def test_without_a_deadline_a_fixed_depth_stays_until_it_is_refused_and_depth_0_is_never_refused() -> None:
    assert patient(2.0, fixed=8) == patient(0.0, fixed=8)
    with pytest.raises(OverloadError):
        patient(2.1, fixed=8, served=COUNTED)
    assert patient(2.0, served=COUNTED).depth == 4
    counted = patient(2.1, served=COUNTED)
    assert (counted.depth, counted.reason) == (0, DepthReason.DEADLINE)
    assert patient(9.0, served=COUNTED, fixed=0).reason is DepthReason.FIXED


@given(st.floats(0, 3), st.none() | st.sampled_from(DEPTHS), st.sampled_from([DEPTHS, (0, *DEPTHS)]))
def test_what_is_refused_without_a_deadline_before_it_is_read_is_refused_afterwards(
    queue_s: float, fixed: int | None, served: tuple[int, ...]
) -> None:
    clock, choosing = Clock(time_s=math.inf, queue=queue_s), chooser(served=served)
    outcomes = []
    for ask in (
        lambda: choosing.admit(EDGE, fixed, clock),
        lambda: choosing.choose(request(profile=EDGE, fixed=fixed, estimates=clock)),
    ):
        try:
            ask()
            outcomes.append(True)
        except OverloadError:
            outcomes.append(False)
    assert outcomes[0] == outcomes[1]


# Depth 0


@fast
@given(
    complexity=share,
    profile=st.sampled_from(PROFILES),
    policy=st.sampled_from(["auto", "rule", "deepest"]),
    clock=st.builds(Clock, time_s=ticks, queue=ticks, costs=st.dictionaries(st.sampled_from(DEPTHS), ticks)),
)
def test_with_depth_0_no_request_is_refused_that_has_the_time_for_it(
    complexity: float, profile: DeviceProfile, policy: PolicyName, clock: Clock
) -> None:
    clock.costs[0] = min(clock.time_s, 0.0001)
    choosing = chooser(served=COUNTED, policy=policy)
    choosing.admit(profile, None, clock)
    assert choosing.choose(request(complexity, profile, estimates=clock)).depth in profile.depths


def test_what_falls_to_depth_0_is_not_looked_at_and_says_why() -> None:
    late = DepthRequest(EDGE, ITEMS, never, estimates=Clock(time_s=0.004, costs={0: 0.00004, 4: 0.003}))
    choice = chooser(served=COUNTED).choose(late)
    assert (choice.depth, choice.reason, choice.complexity, choice.probe) == (0, DepthReason.DEADLINE, None, False)
    assert choice.why == "4.0 ms left, 2.0 ms of it in the queue: too little for depth 4, depth 0 needs 0.04 ms"


def test_only_what_has_not_even_the_time_for_depth_0_is_refused() -> None:
    choosing = chooser(served=COUNTED)
    for time_s, words in ((0.00002, r"^0\.02 ms left: depth 0 needs 0\.04 ms; allow more time$"), (0.0, "has passed")):
        clock = Clock(time_s=time_s, queue=1.0, costs={0: 0.00004, 4: 0.00001})
        for fixed in (None, 0):
            for refused in (
                lambda fixed=fixed, clock=clock: choosing.choose(DepthRequest(EDGE, ITEMS, never, fixed, clock)),
                lambda fixed=fixed, clock=clock: choosing.admit(EDGE, fixed, clock),
            ):
                with pytest.raises(DeadlineError, match=words):
                    refused()


def test_depth_0_is_chosen_only_where_the_profile_allows_it_and_the_bundle_has_it() -> None:
    tight = Clock(time_s=0.001, costs={0: 0.0, 4: 1.0})
    without = EDGE.model_copy(update={"depths": EDGE.depths[1:]})
    for served, profile in ((COUNTED, without), (DEPTHS, EDGE)):
        with pytest.raises(DeadlineError, match="depth 4 needs"):
            chooser(served=served).choose(request(profile=profile, estimates=tight))
    with pytest.raises(DeadlineError, match="depth 8 needs"):
        chooser(served=COUNTED).choose(request(profile=EDGE, fixed=8, estimates=tight))
    fixed = chooser(served=COUNTED).choose(request(profile=without, fixed=0, estimates=tight))
    assert (fixed.depth, fixed.reason, fixed.why) == (0, DepthReason.FIXED, "depth 0 was requested")
    with pytest.raises(NotFoundError, match="depth 0 is not served here; served: 4, 8, 12, 16"):
        chooser().choose(request(fixed=0))


@pytest.mark.parametrize("policy", ["auto", "rule", "deepest"])
def test_without_a_deadline_nothing_gets_depth_0(policy: PolicyName) -> None:
    choosing = chooser(served=COUNTED, policy=policy)
    assert all(choosing.choose(request(complexity)).depth > 0 for complexity in np.linspace(0, 1, 50))
    # Even where depth 0 is the nearest to what the rule wants.
    assert chooser(served=(0, 12), policy="rule").choose(request(0.0, EDGE)).depth == 12


def test_a_certificate_for_the_depths_without_0_still_holds(bundle: Bundle) -> None:
    assert chooser(bundle.certificate, COUNTED).policy(CLOUD).certified


def test_a_refusal_of_the_queue_becomes_depth_0_where_that_is_allowed_and_in_time() -> None:
    choosing, full, late = chooser(served=COUNTED), OverloadError("full", retry_after_s=1.0), DeadlineError("late")
    costs = {0: 0.001}
    for refused, words in ((full, "the queue is full"), (late, "the queue took too long")):
        for clock in (None, Clock(time_s=0.001, costs=costs)):
            choice = choosing.instead(request(estimates=clock), refused)
            assert (choice.depth, choice.reason) == (0, DepthReason.DEADLINE)
            assert choice.why == f"{words}, so the network cannot answer in time: depth 0"
        for asked in (request(fixed=8), request(estimates=Clock(time_s=0.0005, costs=costs))):
            with pytest.raises(type(refused), match=str(refused)):
                choosing.instead(asked, refused)


def test_a_request_without_a_known_item_gets_what_is_popular_unless_it_is_too_late() -> None:
    without = EDGE.model_copy(update={"depths": EDGE.depths[1:]})
    nothing = np.array([], np.int64)
    for profile in (EDGE, without):
        slow = Clock(time_s=0.0005, costs={0: 0.001}, probing=True)  # no run of the engine could show anything
        for clock in (None, Clock(time_s=0.001, queue=1.0, costs={0: 0.0001}), slow):
            choice = chooser(served=COUNTED).choose(DepthRequest(profile, nothing, never, estimates=clock))
            assert (choice.depth, choice.reason, choice.probe) == (0, DepthReason.POPULAR, False)
            assert choice.why == "no item of the history is known: the most popular"
        with pytest.raises(DeadlineError, match="the deadline has passed"):
            chooser(served=COUNTED).choose(DepthRequest(profile, nothing, never, estimates=Clock(time_s=-1.0)))


def test_a_server_that_is_behind_answers_as_cheaply_as_it_may() -> None:
    fast = {0: 0.0001, 4: 0.003, 16: 0.004}
    behind = Clock(time_s=0.1, queue=0.0, costs=fast, behind=True)
    served = (0, *DEPTHS)
    assert chooser(served=served).choose(request(estimates=replace(behind, behind=False))).depth == 16
    choice = chooser(served=served).choose(request(estimates=behind))
    assert (choice.depth, choice.reason) == (0, DepthReason.DEADLINE)
    assert choice.why == "more requests arrive than can be answered: depth 0"
    choice = chooser().choose(request(estimates=behind))
    assert choice.why == f"more requests arrive than can be answered: depth {DEPTHS[0]}"
    assert chooser(served=served).choose(request(fixed=16, estimates=behind)).depth == 16
    no_deadline = replace(behind, time_s=math.inf)
    assert chooser(served=served).choose(request(estimates=no_deadline)).depth == 16
