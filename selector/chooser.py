"""How deep a request goes: a policy says how deep it should go, the clock has the last word.

Nothing here reads a clock: whatever is needed is an argument, time included.
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, DeadlineError, NotFoundError, OverloadError
from fathom.selector.certificate import KINDS, Certificate, Claim, Kind
from fathom.selector.choice import Choice, DepthReason, DepthRequest, Estimates, PolicyName
from fathom.selector.monitor import Monitor
from fathom.selector.policy import (
    NOTHING_CERTIFIED,
    CertifiedRouting,
    DepthPolicy,
    FixedDepth,
    MostPopular,
    ProfileRule,
)

#: How many times a deeper depth than the shallowest must leave time for the queue. At twice the load that the deepest
#: depth can bear, 4 answers far more requests in time than 1 (docs/log.md).
QUEUE_WEIGHT = 4
#: The same for the shallowest: the queue is an estimate, and who was let in should not be dropped later.
LEAST_WEIGHT = 1.25
BEHIND = "more requests arrive than can be answered"

#: Seconds of work that may wait ahead of a request without a deadline: people leave after about two seconds, and a
#: longer queue only makes everybody late. From a QUEUE_WEIGHT-th of it on, requests get the shallowest depth.
MOST_WAIT_S = 2.0


class DepthChooser:
    """Chooses for one bundle and the depths that it serves: its engine's, and 0 where it has a counting exit.

    auto: as certified for the depths that the profile allows, the deepest depth where nothing is certified. certified:
    the same, and ``require`` refuses a profile without. rule: the profile's rule. deepest: always the deepest depth.
    ``alpha``: the probability that a monitor ever raises its alarm wrongly. ``recertify``: whether monitors may certify
    another routing after an alarm. ``at_share``: the complexity that a share of the bundle's requests lies below, for
    the rule.
    """

    def __init__(
        self,
        certificate: Certificate | None,
        served: Collection[int],
        *,
        policy: PolicyName,
        alpha: float,
        recertify: bool = False,
        at_share: Callable[[float], float] = float,
    ) -> None:
        self._certificate = certificate
        self._served = frozenset(served)
        self._policy = policy
        self._alpha = alpha
        self._recertify = recertify
        self._at_share = at_share
        self._fixed = {depth: FixedDepth(depth) for depth in served}
        self._most_popular = MostPopular()
        self._policies: dict[tuple[PolicyName, tuple[int, ...]], DepthPolicy] = {}
        self._monitors: dict[tuple[Kind, tuple[int, ...]], Monitor] = {}

    def choose(self, request: DepthRequest) -> Choice:
        """The depth of a request: what the policy wants, or else the deepest shallower one that the deadline allows.

        Where the engine would be too late at any depth, that is depth 0, if the profile allows it and it is served. A
        fixed depth is never replaced. No other depth is chosen whose own run takes longer than the profile's latency
        budget, unless all do. Raises NotFoundError where neither the fixed depth nor one of the profile's is
        served, OverloadError or DeadlineError where not even the shallowest can be answered in time. What is refused
        or has time for one depth only is not looked at, since under overload that is most. Without a deadline the same
        follows from the work that waits ahead, whatever the request costs itself.
        """
        profile, items, _, fixed, estimates, named = request
        policy = self._policy_of(profile, fixed, named) if len(items) else self._most_popular
        choice = self._choose(policy, request)
        if estimates is None or fixed is not None:
            return choice
        return _within_budget(choice, policy.depths, profile, estimates)

    def _choose(self, policy: DepthPolicy, request: DepthRequest) -> Choice:
        """The same but for the profile's latency budget."""
        profile, _, _, fixed, estimates, _ = request
        if estimates is None:
            return policy.choose(request)
        depths = policy.depths
        if estimates.time_s == math.inf:
            return self._patient(policy, request, estimates)
        time = _time_for(depths[0], estimates, counts=self.may_count(profile, fixed))
        if time.counts:
            return _counted(depths[0], time, estimates)
        if time.spare_s < time.cost_s and len(depths) > 1 and not _fit(depths[1:], time.spare_s, estimates):
            return _shallowest(depths, time, behind=estimates.behind)
        return _in_time(policy.choose(request), depths, time, estimates)

    def admit(self, profile: DeviceProfile, fixed: int | None, estimates: Estimates) -> None:
        """Raise what ``choose`` would, from what is known before a request is read."""
        shallowest, counts = self._policy_of(profile, fixed).depths[0], self.may_count(profile, fixed)
        if estimates.time_s < math.inf:
            _time_for(shallowest, estimates, counts=counts)
        elif not counts:
            _check_wait(estimates.queue_s(shallowest))

    def _patient(self, policy: DepthPolicy, request: DepthRequest, estimates: Estimates) -> Choice:
        """The choice for a request without a deadline."""
        shallowest = policy.depths[0]
        queue_s = estimates.queue_s(shallowest)
        if queue_s <= MOST_WAIT_S / QUEUE_WEIGHT:
            return policy.choose(request)
        depth = shallowest
        if queue_s > MOST_WAIT_S:
            if not self.may_count(request.profile, request.fixed):
                _check_wait(queue_s)
            depth = 0
        elif len(policy.depths) == 1:
            return policy.choose(request)
        return Choice(
            depth, DepthReason.DEADLINE, f"{_ms(queue_s)} of work are waiting: too much for more than depth {depth}"
        )

    def instead(self, request: DepthRequest, refused: DeadlineError | OverloadError) -> Choice:
        """Depth 0 for a request that the queue has refused, where it may have it in time; else raises ``refused``."""
        estimates = request.estimates
        if not self.may_count(request.profile, request.fixed) or (estimates and not _fits(0, estimates)):
            raise refused
        found = "the queue is full" if isinstance(refused, OverloadError) else "the queue took too long"
        return Choice(0, DepthReason.DEADLINE, f"{found}, so the network cannot answer in time: depth 0")

    def policy(self, profile: DeviceProfile, name: PolicyName | None = None) -> DepthPolicy:
        """How the requests of a profile are routed; raises NotFoundError where none of its depths is served.

        ``name``: by another policy than the chooser's own.
        """
        key = name or self._policy, profile.depths
        return self._policies.get(key) or self._policies.setdefault(key, self._new_policy(profile, key[0]))

    def claims(self, profile: DeviceProfile) -> list[Claim]:
        """What was tested for the depths of a profile that are served: with depth 0, and without, quality first.

        The first that holds is followed where the policy allows it.
        """
        if self._certificate is None:
            return []
        depths = self._allowed(profile)
        sets = dict.fromkeys((depths, tuple(filter(None, depths))))
        found = [self._certificate.claim(each, kind=kind) for kind in KINDS for each in sets]
        return [claim for claim in found if claim is not None]

    def require(self, profile: DeviceProfile) -> None:
        """Raises ConfigError where the policy is ``certified`` and nothing is certified for this profile."""
        if self._policy == "certified" and not self.policy(profile).certified:
            raise ConfigError(
                f"nothing is certified for the depths of profile {profile.name}; run `fathom certify` on the bundle, or"
                " serve it with --policy auto"
            )

    def may_count(self, profile: DeviceProfile, fixed: int | None) -> bool:
        """Whether a request may fall to depth 0."""
        return fixed is None and 0 in self._served and 0 in profile.depths

    def _policy_of(self, profile: DeviceProfile, fixed: int | None, named: PolicyName | None = None) -> DepthPolicy:
        if fixed is None:
            return self.policy(profile, named)
        if fixed not in self._fixed:
            raise NotFoundError(f"depth {fixed} is not served here; served: {_list(self._served)}")
        return self._fixed[fixed]

    def _allowed(self, profile: DeviceProfile) -> tuple[int, ...]:
        return tuple(depth for depth in profile.depths if depth in self._served)

    def _new_policy(self, profile: DeviceProfile, name: PolicyName) -> DepthPolicy:
        depths = tuple(filter(None, self._allowed(profile)))
        if not depths:
            allowed, served = _list(profile.depths), _list(self._served)
            raise NotFoundError(f"profile {profile.name} allows depths {allowed}, but this bundle serves {served}")
        if name == "rule":
            return ProfileRule(depths, self._at_share)
        if name == "deepest":
            return DepthPolicy(depths)
        for claim in self.claims(profile):
            if claim.routing is not None:
                return CertifiedRouting(claim.routing, self._monitor(claim), claim.kind)
        return DepthPolicy(depths, NOTHING_CERTIFIED)

    def _monitor(self, claim: Claim) -> Monitor | None:
        # Profiles that allow different depths may share a claim: those that are served.
        if claim.agreement is None:
            return None
        assert self._certificate is not None
        costs_ms = self._certificate.costs_ms if self._recertify else None
        return self._monitors.setdefault((claim.kind, claim.depths), Monitor(claim, self._alpha, costs_ms))


class _Time(NamedTuple):
    """Seconds to the deadline, those of them in the queue, what the shallowest depth costs, and whether it fits.

    ``spare_s``: what a deeper depth may cost. ``counts``: nothing fits but depth 0.
    """

    left_s: float
    queue_s: float
    cost_s: float
    spare_s: float
    fits: bool
    counts: bool = False


def _time_for(shallowest: int, estimates: Estimates, *, counts: bool) -> _Time:
    """The only place that finds a request to be too late: even its shallowest depth, and there is nothing to learn.

    A depth fits when weight * queue + p99 <= time left, with LEAST_WEIGHT for the shallowest and QUEUE_WEIGHT for
    every other, so that under overload a queue is worked off by shallow answers long before requests are refused. While
    the engine has time to spare, the shallowest fits where it may well be in time (see ``Estimates.care``), but not
    where depth 0 surely would be. Where the server is behind, nothing deeper fits, and depth 0 comes first.
    ``shallowest``: of the depths that the policy chooses from. ``counts``: whether depth 0 may take its place.
    """
    time_s, queue_s, care = estimates.time_s, estimates.queue_s(shallowest), 1.0 if counts else estimates.care
    cost_s, weight = estimates.cost_s(shallowest, care=care), 1 + care * (LEAST_WEIGHT - 1)
    fits = weight * queue_s + cost_s <= time_s
    if counts and shallowest > 0 and (estimates.behind or not fits):
        if _fits(0, estimates):
            return _Time(time_s, queue_s, cost_s, 0.0, fits, counts=True)
        shallowest, queue_s, cost_s = 0, 0.0, estimates.cost_s(0)
    elif fits or estimates.may_probe(shallowest):
        spare_s = 0.0 if estimates.behind else time_s - QUEUE_WEIGHT * queue_s
        return _Time(time_s, queue_s, cost_s, spare_s, fits)
    if cost_s <= time_s:
        wait_s = weight * queue_s + cost_s - time_s
        left = _left(time_s, queue_s)
        text = f"{left}, which is too full for depth {shallowest}; try again in {_ms(wait_s)}"
        raise OverloadError(text, retry_after_s=wait_s)
    if time_s <= 0:
        raise DeadlineError("the deadline has passed")
    raise DeadlineError(f"{_ms(time_s)} left: depth {shallowest} needs {_ms(cost_s)}; allow more time")


def _check_wait(queue_s: float) -> None:
    """Raises OverloadError where too much work waits for anybody to wait for."""
    if queue_s > MOST_WAIT_S:
        wait_s = queue_s - MOST_WAIT_S
        text = f"{_ms(queue_s)} of work are waiting, more than {_ms(MOST_WAIT_S)}; try again in {_ms(wait_s)}"
        raise OverloadError(text, retry_after_s=wait_s)


def _fits(depth: int, estimates: Estimates) -> bool:
    """Whether a depth without a queue fits, or may be tried."""
    return estimates.cost_s(depth) <= estimates.time_s or estimates.may_probe(depth)


def _counted(shallowest: int, time: _Time, estimates: Estimates) -> Choice:
    """Depth 0; where the engine has nothing to do it may show beside that whether it is still so slow."""
    if estimates.behind:
        return Choice(0, DepthReason.DEADLINE, f"{BEHIND}: depth 0")
    left, needs = _left(time.left_s, time.queue_s), _ms(estimates.cost_s(0))
    why = f"{left}: too little for depth {shallowest}, depth 0 needs {needs}"
    return Choice(0, DepthReason.DEADLINE, why, probe=estimates.may_probe(shallowest))


def _fit(depths: tuple[int, ...], spare_s: float, estimates: Estimates) -> bool:
    """Whether one of these depths fits."""
    return any(estimates.cost_s(depth) <= spare_s for depth in depths)


def _shallowest(depths: tuple[int, ...], time: _Time, *, behind: bool = False) -> Choice:
    """The only depth that there is time for, whatever the policy would say, or a probe."""
    if not time.fits:
        why = f"no depth seems to fit the deadline, but nothing has run for a while: depth {depths[0]} is tried"
        return Choice(depths[0], DepthReason.DEADLINE, why, probe=True)
    if behind:
        return Choice(depths[0], DepthReason.DEADLINE, f"{BEHIND}: depth {depths[0]}")
    left, needs = _left(time.left_s, time.queue_s), _ms(time.cost_s)
    why = f"{left}: too little for more than depth {depths[0]}, which needs {needs}"
    return Choice(depths[0], DepthReason.DEADLINE, why)


def _in_time(wanted: Choice, depths: tuple[int, ...], time: _Time, estimates: Estimates) -> Choice:
    """The choice itself where it meets the deadline, else the deepest shallower depth that does, else a probe."""
    if not wanted.depth:
        return wanted
    if wanted.depth == depths[0]:
        return wanted if time.fits else wanted._replace(probe=True)
    if estimates.cost_s(wanted.depth) <= time.spare_s:
        return wanted
    for depth in reversed(depths[1 : depths.index(wanted.depth)]):
        cost_s = estimates.cost_s(depth)
        if cost_s <= time.spare_s:
            return _shallower(wanted, depth, time, cost_s)
    if time.fits:
        return _shallower(wanted, depths[0], time, time.cost_s)
    return _shallowest(depths, time)._replace(complexity=wanted.complexity)


def _within_budget(choice: Choice, depths: tuple[int, ...], profile: DeviceProfile, estimates: Estimates) -> Choice:
    """The choice, or the deepest shallower depth whose run keeps to the profile's budget, or the shallowest.

    As likely as not while the engine has time to spare, else p99: see ``Estimates.care``.
    """
    shallower = [depth for depth in depths if 0 < depth < choice.depth]
    budget_s, care = profile.latency_budget_ms / 1e3, estimates.care
    if not shallower or (cost_s := estimates.cost_s(choice.depth, care=care)) <= budget_s:
        return choice
    kept = (depth for depth in reversed(shallower) if estimates.cost_s(depth, care=care) <= budget_s)
    depth = next(kept, shallower[0])
    needs, allowed = _ms(cost_s), f"{profile.latency_budget_ms:g} ms"
    why = f"depth {choice.depth} needs {needs}, more than the {allowed} that {profile.name} allows: depth {depth}"
    return Choice(depth, DepthReason.DEADLINE, why, choice.complexity)


def _shallower(wanted: Choice, depth: int, time: _Time, cost_s: float) -> Choice:
    left = _left(time.left_s, time.queue_s)
    why = f"{left}: too little for depth {wanted.depth}, depth {depth} needs {_ms(cost_s)}"
    return Choice(depth, DepthReason.DEADLINE, why, wanted.complexity)


def _left(time_s: float, queue_s: float) -> str:
    return f"{_ms(time_s)} left, {_ms(queue_s)} of it in the queue"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{2 if 0 < seconds < 1e-3 else 1}f} ms"


def _list(depths: Collection[int]) -> str:
    return ", ".join(map(str, sorted(depths)))
