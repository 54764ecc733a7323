"""The depth of a request: ``DepthChooser.choose`` is given everything that has a say in it and returns one Choice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, DeadlineError, OverloadError
from fathom.selector import policy
from fathom.selector.certificate import Certificate, Claim
from fathom.selector.choice import Choice, Comparison, DepthReason, EarlyExit
from fathom.selector.features import Features
from fathom.selector.monitor import Monitor
from fathom.selector.routing import Cascade, Routing, coin

Policy = Literal["auto", "certified", "rule", "deepest"]
#: A request's features, and its complexity from 0 to 1.
Inspect = Callable[[], tuple[Features, float]]


class Estimates(Protocol):
    """What a request with a deadline is expected to take, in seconds; asked only for depths that are served."""

    @property
    def time_s(self) -> float:
        """What is left until the deadline."""
        ...

    def queue_s(self, depth: int) -> float:
        """The wait until a request of this depth would start."""
        ...

    def cost_s(self, depth: int, *, cached: bool = True) -> float:
        """p99 from its start to its answer; without ``cached`` as if nothing of its history were in the cache."""
        ...

    def may_probe(self, depth: int) -> bool:
        """Whether it may run although it seems too late: nothing has run for a while that could correct this."""
        ...


@dataclass(frozen=True)
class Route:
    """How the requests of a profile are routed; without ``routing`` they all get the deepest of ``depths``."""

    depths: tuple[int, ...]
    routing: Routing | None
    monitor: Monitor | None

    @property
    def deepest(self) -> int:
        """The deepest depth that the profile allows and the engine serves."""
        return self.depths[-1]


class DepthChooser:
    """Chooses for one bundle and the depths that its engine serves; without a clock, a queue or an engine of its own.

    ``policy`` auto: as certified for the depths that the profile allows, without a certificate by the profile's rule.
    certified: the same, without a certificate the deepest depth. rule: always the rule. deepest: always the deepest
    depth. ``alpha``: the probability that a monitor ever raises a false alarm.
    """

    def __init__(
        self, certificate: Certificate | None, served: tuple[int, ...], *, policy: Policy, alpha: float
    ) -> None:
        self._certificate = certificate
        self._served = served
        self._policy = policy
        self._alpha = alpha
        self._routes: dict[tuple[int, ...], Route | None] = {}
        self._monitors: dict[tuple[int, ...], Monitor] = {}

    def choose(
        self,
        profile: DeviceProfile,
        items: NDArray[np.int64],
        inspect: Inspect,
        *,
        fixed: int | None = None,
        estimates: Estimates | None = None,
    ) -> Choice:
        """The one depth of a request.

        ``items``: indices (n,) of its history as the engine sees it. ``inspect``: called only where features have a
        say. ``fixed``: the depth that the request asks for, which overrides the policy. ``estimates``: None without a
        deadline. Raises NotFoundError where neither the fixed depth nor one of the profile's is served, DeadlineError
        or OverloadError where no depth can be answered in time.
        """
        if estimates is None:
            return self._wanted(profile, items, inspect, fixed)
        # What cannot be answered in time at all is refused before it is inspected: under overload that is most.
        shallowest, queue_s = self.admit(profile, fixed, estimates)
        wanted = self._wanted(profile, items, inspect, fixed)
        cached = wanted.early_exit is None
        if policy.fits(queue_s, estimates.cost_s(wanted.depth, cached=cached), estimates.time_s):
            return wanted
        try:
            return policy.fit_deadline(
                wanted,
                time_s=estimates.time_s,
                queue_s=queue_s,
                cost_p99_s={depth: estimates.cost_s(depth, cached=cached) for depth in self._served},
                allowed=profile.depths,
            )
        except (DeadlineError, OverloadError):
            # A cascade reads its whole history where a single depth could go on from the cache.
            if not estimates.may_probe(shallowest):
                raise
            return policy.probing(wanted, shallowest)

    def admit(self, profile: DeviceProfile, fixed: int | None, estimates: Estimates) -> tuple[int, float]:
        """The shallowest depth that a request may get, and its wait in seconds; raises as ``choose``."""
        shallowest = self._shallowest(profile, fixed)
        queue_s, cost_s = estimates.queue_s(shallowest), estimates.cost_s(shallowest)
        fits = policy.fits(queue_s, cost_s, estimates.time_s, policy.LEAST_WEIGHT)
        if fits or estimates.may_probe(shallowest):
            return shallowest, queue_s
        raise policy.refusal(shallowest, time_s=estimates.time_s, queue_s=queue_s, cost_s=cost_s)

    def _shallowest(self, profile: DeviceProfile, fixed: int | None) -> int:
        if fixed is not None:
            return policy.obey(fixed, self._served).depth
        depths = self._common(profile)
        # Where none is served, the rule words the error.
        return depths[0] if depths else policy.choose(0.0, profile, self._served).depth

    def _wanted(self, profile: DeviceProfile, items: NDArray[np.int64], inspect: Inspect, fixed: int | None) -> Choice:
        """The depth that a request should get, whatever its deadline."""
        if fixed is not None:
            return policy.obey(fixed, self._served)
        route = self.route(profile)
        if route is None:
            return policy.choose(inspect()[1], profile, self._served)
        if route.routing is None:
            why = f"depth {route.deepest} is the deepest for {profile.tier}"
            return Choice(route.deepest, DepthReason.DEEPEST, why)
        if route.monitor is not None and route.monitor.alarm:
            why = f"depth {route.deepest}: routed answers no longer agree with it as certified"
            return Choice(route.deepest, DepthReason.FALLBACK, why)
        features, complexity = inspect()
        depth, why = route.routing.depth(features, complexity, coin(items)), f"as certified: {route.routing.words}"
        comparison = None if route.monitor is None else Comparison(route.deepest, route.monitor)
        if isinstance(route.routing, Cascade):
            exit_early = EarlyExit(route.routing, features)
            return Choice(depth, DepthReason.CERTIFIED, why, complexity, exit_early, comparison)
        return Choice(depth, DepthReason.CERTIFIED, f"depth {depth}, {why}", complexity, None, comparison)

    def route(self, profile: DeviceProfile) -> Route | None:
        """How this profile's requests are routed; None for its own rule."""
        if profile.depths not in self._routes:
            self._routes[profile.depths] = self._new_route(profile)
        return self._routes[profile.depths]

    def require(self, profile: DeviceProfile) -> None:
        """Raises ConfigError where the policy is ``certified`` and nothing is certified for this profile."""
        route = self.route(profile)
        if self._policy == "certified" and (route is None or route.routing is None):
            raise ConfigError(
                f"nothing is certified for the depths of profile {profile.name}; run `fathom certify` on the bundle, or"
                " serve it with --policy auto"
            )

    def words(self, profile: DeviceProfile) -> str:
        """The policy for a profile in a few words."""
        route = self.route(profile)
        if route is None:
            return f"rule: below complexity {profile.threshold:g} depth {profile.shallow}, else {profile.deep}"
        if route.routing is None:
            return f"always depth {route.deepest}"
        return f"certified: {route.routing.words}"

    def _common(self, profile: DeviceProfile) -> tuple[int, ...]:
        return tuple(depth for depth in profile.depths if depth in self._served)

    def _new_route(self, profile: DeviceProfile) -> Route | None:
        depths = self._common(profile)
        # Where no depth is served, the rule words the error.
        if self._policy == "rule" or not depths:
            return None
        claim = self._certificate.claim(depths) if self._certificate and self._policy != "deepest" else None
        if claim is not None and claim.routing is not None:
            return Route(depths, claim.routing, self._monitor(claim))
        return None if self._policy == "auto" else Route(depths, None, None)

    def _monitor(self, claim: Claim) -> Monitor | None:
        if claim.agreement is None:
            return None
        return self._monitors.setdefault(claim.depths, Monitor(claim, self._alpha))
