"""Which depth a request should get, by the server's policy, and whether the certificate still fits what comes in."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.selector.betting import Evidence
from fathom.selector.certificate import Certificate, Claim
from fathom.selector.features import Features
from fathom.selector.policy import Decision, DepthReason, choose, obey
from fathom.selector.routing import Cascade, Routing, coin

Policy = Literal["auto", "certified", "rule", "deepest"]

log = logging.getLogger("fathom.runtime")


class Monitor:
    """Whether routed answers still agree with the deepest depth's as the certificate promised (an e-process).

    The alarm is raised wrongly, ever, with probability at most ``alpha``, and stays.
    """

    def __init__(self, claim: Claim, alpha: float) -> None:
        assert claim.agreement is not None
        self.evidence = Evidence(claim.agreement)
        self.alarm = False
        self._depths = claim.depths
        self._alpha = alpha

    def add(self, agreement: float) -> None:
        """The share of the deepest depth's top 10 that one routed request was given too."""
        evidence = self.evidence
        evidence.add(agreement)
        if not self.alarm and evidence.capital >= 1 / self._alpha:
            self.alarm = True
            log.warning(
                "the certificate for depths %s no longer fits: of %d requests run twice, %.1f %% of the top 10 agree,"
                " at least %.1f %% were promised; their requests now get depth %d, until the bundle is exchanged",
                ", ".join(map(str, self._depths)),
                evidence.count,
                100 * evidence.mean,
                100 * evidence.expected,
                self._depths[-1],
            )


@dataclass(frozen=True)
class Route:
    """How the requests of a profile are routed; without ``routing`` they all get the deepest of ``depths``."""

    depths: tuple[int, ...]
    routing: Routing | None
    monitor: Monitor | None
    tier: str

    @property
    def deepest(self) -> int:
        """The deepest depth that the profile allows and the engine serves."""
        return self.depths[-1]


class Router:
    """Decides for one bundle and the depths that its engine serves.

    auto: as certified for the depths that the profile allows, without a certificate by the profile's rule. certified:
    the same, without a certificate the deepest depth. rule: always the rule. deepest: always the deepest depth.
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

    def decide(
        self,
        profile: DeviceProfile,
        look: Callable[[], tuple[Features, float]],
        items: NDArray[np.int64],
        fixed: int | None,
    ) -> Decision:
        """The depth that a request should get; ``fixed`` overrides the policy.

        ``look``: the request's features and complexity, asked for only where they have a say. Raises NotFoundError
        where neither the fixed depth nor one of the profile's is served.
        """
        if fixed is not None:
            return obey(fixed, self._served)
        route = self.route(profile)
        if route is None:
            return choose(look()[1], profile, self._served)
        if route.routing is None:
            return Decision(
                route.deepest, DepthReason.DEEPEST, f"depth {route.deepest} is the deepest for {route.tier}"
            )
        if route.monitor is not None and route.monitor.alarm:
            why = f"depth {route.deepest}: routed answers no longer agree with it as certified"
            return Decision(route.deepest, DepthReason.FALLBACK, why)
        features, complexity = look()
        depth = route.routing.depth(features, complexity, coin(items))
        if isinstance(route.routing, Cascade):
            return Decision(depth, DepthReason.CERTIFIED, f"as certified: {route.routing.words}", complexity)
        return Decision(depth, DepthReason.CERTIFIED, f"depth {depth}, as certified: {route.routing.words}", complexity)

    def least(self, profile: DeviceProfile, fixed: int | None) -> int:
        """The shallowest depth that a request may get; raises NotFoundError where none is served."""
        if fixed is not None:
            return obey(fixed, self._served).depth
        depths = [depth for depth in profile.depths if depth in self._served]
        return min(depths) if depths else choose(0.0, profile, self._served).depth

    def route(self, profile: DeviceProfile) -> Route | None:
        """How this profile's requests are routed; None for its own rule. Raises NotFoundError without a depth."""
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

    def _new_route(self, profile: DeviceProfile) -> Route | None:
        if self._policy == "rule":
            return None
        depths = tuple(depth for depth in profile.depths if depth in self._served)
        if not depths:
            # The rule words this error.
            return None
        claim = self._certificate.claim(depths) if self._certificate and self._policy != "deepest" else None
        if claim is not None and claim.routing is not None:
            return Route(depths, claim.routing, self._monitor(claim), profile.tier)
        return None if self._policy == "auto" else Route(depths, None, None, profile.tier)

    def _monitor(self, claim: Claim) -> Monitor | None:
        if claim.agreement is None:
            return None
        return self._monitors.setdefault(claim.depths, Monitor(claim, self._alpha))

    def words(self, profile: DeviceProfile) -> str:
        """The policy for a profile in a few words."""
        route = self.route(profile)
        if route is None:
            return f"rule: below complexity {profile.threshold:g} depth {profile.shallow}, else {profile.deep}"
        if route.routing is None:
            return f"always depth {route.deepest}"
        return f"certified: {route.routing.words}"
