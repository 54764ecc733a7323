"""The policies that a depth is chosen by where time plays no part."""

from collections.abc import Callable, Collection

from fathom.edge_profiles.profile import DeviceProfile
from fathom.selector.certificate import Kind
from fathom.selector.choice import AgreementCheck, Choice, DepthReason, DepthRequest
from fathom.selector.monitor import Monitor
from fathom.selector.routing import Mixture, Routing, coin

NOTHING_CERTIFIED = " (nothing else is certified)"


class DepthPolicy:
    """Always the deepest of ``depths``: those that a profile allows and the engine serves, ascending, at least one.

    Depth 0, which needs no engine, is not among them, but where it is all that there is. ``note``: what its words end
    with.
    """

    certified = False
    monitor: Monitor | None = None

    def __init__(self, depths: tuple[int, ...], note: str = "") -> None:
        self.depths = depths
        self.deepest = depths[-1]
        self._note = note

    def choose(self, request: DepthRequest) -> Choice:
        """The depth that a request should get."""
        why = f"depth {self.deepest} is the deepest for {request.profile.tier}{self._note}"
        return Choice(self.deepest, DepthReason.DEEPEST, why)

    def words(self, profile: DeviceProfile) -> str:  # noqa: ARG002
        """The policy in a few words."""
        return f"always depth {self.deepest}{self._note}"


class FixedDepth(DepthPolicy):
    """The depth that a request asks for."""

    def __init__(self, depth: int) -> None:
        super().__init__((depth,))
        self._choice = Choice(depth, DepthReason.FIXED, f"depth {depth} was requested")

    def choose(self, request: DepthRequest) -> Choice:  # noqa: ARG002
        """The depth that was asked for."""
        return self._choice


class MostPopular(DepthPolicy):
    """Depth 0, for a request of which no item is known."""

    def __init__(self) -> None:
        super().__init__((0,))

    def choose(self, request: DepthRequest) -> Choice:  # noqa: ARG002
        """Depth 0."""
        return Choice(0, DepthReason.POPULAR, "no item of the history is known: the most popular")


class ProfileRule(DepthPolicy):
    """The share of requests that a profile's threshold names, those of least complexity, get its shallow depth.

    ``at_share``: the complexity that a share of requests lies below. The others get its deep depth.
    """

    def __init__(self, depths: tuple[int, ...], at_share: Callable[[float], float]) -> None:
        super().__init__(depths)
        self._at_share = at_share

    def choose(self, request: DepthRequest) -> Choice:
        """The depth that the complexity asks for."""
        complexity, profile = request.inspect(brief=True)[1], request.profile
        return by_rule(complexity, profile, self.depths, self._at_share(profile.threshold))

    def words(self, profile: DeviceProfile) -> str:
        """The rule with its numbers."""
        threshold = self._at_share(profile.threshold)
        return f"rule: below complexity {threshold:.3g} depth {profile.shallow}, else {profile.deep}"


class CertifiedRouting(DepthPolicy):
    """As certified, until ``monitor`` (None where nothing is routed elsewhere) finds that it no longer fits.

    Then the deepest depth, and as certified again where the monitor does that. ``kind``: of what is certified.
    """

    certified = True

    def __init__(self, routing: Routing, monitor: Monitor | None, kind: Kind = "quality") -> None:
        depths = routing.depths if monitor is None else monitor.depths
        super().__init__(tuple(filter(None, depths)))
        self.monitor = monitor
        self.kind: Kind = kind
        self._agreement_check = None if monitor is None else AgreementCheck(self.deepest, monitor)
        self._follow(routing, "certified" if kind == "quality" else "certified on agreement")

    def _follow(self, routing: Routing, how: str) -> None:
        self._routing = routing
        self._words = f"{how}: {routing.words}"
        self._why = f"as {self._words}"

    def _follow_monitor(self) -> None:
        if self.monitor is not None and self.monitor.routing is not self._routing:
            self._follow(self.monitor.routing, "certified again")

    def choose(self, request: DepthRequest) -> Choice:
        """The depth of the certified routing, or the deepest once the alarm is raised."""
        if self.monitor is not None and self.monitor.alarm:
            why = f"depth {self.deepest}: routed answers no longer agree with it as certified"
            check = self._agreement_check if self.monitor.recertification is not None else None
            return Choice(self.deepest, DepthReason.FALLBACK, why, agreement_check=check)
        self._follow_monitor()
        routing, why, check = self._routing, self._why, self._agreement_check
        if isinstance(routing, Mixture):
            depth = routing.depth(coin(request.items))
            return Choice(depth, DepthReason.CERTIFIED, f"depth {depth}, {why}", agreement_check=check)
        features, complexity = request.inspect()
        depth = routing.depth(features)
        return Choice(depth, DepthReason.CERTIFIED, f"depth {depth}, {why}", complexity, check)

    def words(self, profile: DeviceProfile) -> str:  # noqa: ARG002
        """The routing in a few words."""
        self._follow_monitor()
        return self._words


def by_rule(complexity: float, profile: DeviceProfile, depths: Collection[int], threshold: float) -> Choice:
    """Below the threshold the profile's shallow depth, else the deep one.

    Where that is not among ``depths``, which are some of the profile's, the nearest takes its place, the deeper of two
    equally near.
    """
    tier, text, limit = profile.tier, f"{complexity:.2f}", f"{threshold:.2f}"
    if complexity < threshold:
        wanted, reason, enough = profile.shallow, DepthReason.SIMPLE, " is enough"
        below = "is just below" if text == limit else "is below"
    else:
        wanted, reason, enough, below = profile.deep, DepthReason.COMPLEX, "", "is at least"
    if wanted in depths:
        why = f"complexity {text} {below} {limit}: depth {wanted}{enough} for {tier}"
        return Choice(wanted, reason, why, complexity)
    depth = min(depths, key=lambda each: (abs(each - wanted), -each))
    why = f"complexity {text} {below} {limit}: depth {depth} for {tier}, in place of {wanted}, which is not served here"
    return Choice(depth, reason, why, complexity)
