"""From complexity, profile and clock to a depth. Pure functions: whatever they need is an argument, time included.

``choose`` says how deep a request should go, ``fit_deadline`` how deep it still can go; the clock has the last word.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import DeadlineError, NotFoundError, OverloadError
from fathom.selector.choice import Choice, DepthReason

#: How many times a deeper depth than the shallowest must leave time for the queue. At twice the load that the deepest
#: depth can bear, 4 answers far more requests in time than 1 (docs/log.md).
QUEUE_WEIGHT = 4
#: The same for the shallowest: the queue is an estimate, and who was let in should not be dropped later.
LEAST_WEIGHT = 1.25


def obey(depth: int, served_depths: Collection[int]) -> Choice:
    """The depth that a request asks for; raises NotFoundError when the bundle does not serve it."""
    if depth not in served_depths:
        raise NotFoundError(f"depth {depth} is not served here; there are {_list(served_depths)}")
    return Choice(depth, DepthReason.FIXED, f"depth {depth} was asked for")


def choose(complexity: float, profile: DeviceProfile, served_depths: Collection[int]) -> Choice:
    """The depth that a request should get: below the profile's threshold the shallow one, else the deep one.

    Where the bundle does not serve that depth, the nearest depth that both bundle and profile know takes its place,
    the deeper of two equally near. Raises NotFoundError when every depth of the profile is missing from the bundle.
    """
    simple = complexity < profile.threshold
    wanted = profile.shallow if simple else profile.deep
    depth = wanted if wanted in served_depths else _nearest(wanted, profile, served_depths)
    text, limit = f"{complexity:.2f}", f"{profile.threshold:.2f}"
    if not simple:
        why = f"complexity {text} is not below {limit}: depth {depth} for {profile.tier}"
    else:
        below = "is just below" if text == limit else "is below"
        why = f"complexity {text} {below} {limit}: depth {depth} is enough for {profile.tier}"
    if depth != wanted:
        why = (
            f"{why.partition(':')[0]}: depth {depth} for {profile.tier}, in place of {wanted}, which is not served here"
        )
    return Choice(depth, DepthReason.SIMPLE if simple else DepthReason.COMPLEX, why, complexity)


def fit_deadline(
    choice: Choice, *, time_s: float, queue_s: float, cost_p99_s: Mapping[int, float], allowed: Collection[int]
) -> Choice:
    """The choice itself when it meets the deadline, else the deepest shallower allowed depth that does.

    A depth fits when ``weight * queue_s + cost_p99_s[depth] <= time_s``, with LEAST_WEIGHT for the shallowest and
    QUEUE_WEIGHT for every other, so that under overload a queue is worked off by shallow answers long before requests
    must be refused. A depth without a measured cost never fits. ``time_s``: what is left until the deadline; all times
    are seconds. A fixed depth is never replaced. When nothing fits, raises OverloadError where the shallowest would fit
    without the queue, else DeadlineError.
    """
    fixed = choice.reason is DepthReason.FIXED
    depths = [choice.depth] if fixed else [*(d for d in sorted(allowed) if d < choice.depth), choice.depth]
    known = [d for d in depths if d in cost_p99_s]
    weights = [LEAST_WEIGHT, *(QUEUE_WEIGHT for _ in known[1:])]
    fitting = [d for d, weight in zip(known, weights, strict=False) if fits(queue_s, cost_p99_s[d], time_s, weight)]
    if not fitting:
        tried = known[0] if known else choice.depth
        raise refusal(tried, time_s=time_s, queue_s=queue_s, cost_s=cost_p99_s.get(tried))
    depth = fitting[-1]
    if depth == choice.depth:
        return choice
    left = _left(time_s, queue_s)
    why = f"{left}: too little for depth {choice.depth}, depth {depth} needs {_ms(cost_p99_s[depth])}"
    return Choice(depth, DepthReason.DEADLINE, why, choice.complexity)


def probing(choice: Choice, shallowest: int) -> Choice:
    """The choice for a request that ``fit_deadline`` refuses, but that is run to see whether it still has to.

    ``shallowest``: the shallowest depth that the request may have.
    """
    if choice.depth == shallowest:
        return replace(choice, early_exit=None, probe=True)
    why = f"no depth seems to fit the deadline, but nothing has run for a while: depth {shallowest} is tried"
    return Choice(shallowest, DepthReason.DEADLINE, why, choice.complexity, probe=True)


def fits(queue_s: float, cost_s: float, time_s: float, weight: float = QUEUE_WEIGHT) -> bool:
    """Whether a depth of this cost can be answered in the time that is left, all in seconds."""
    return cost_s + weight * queue_s <= time_s


def refusal(depth: int, *, time_s: float, queue_s: float, cost_s: float | None) -> OverloadError | DeadlineError:
    """Why not even this depth can be answered in time: the queue, if it could be without, else its own cost."""
    if cost_s is not None and cost_s <= time_s:
        wait_s = max(0.0, LEAST_WEIGHT * queue_s + cost_s - time_s)
        text = f"{_left(time_s, queue_s)}, which is too full for depth {depth}; try again in {_ms(wait_s)}"
        return OverloadError(text, retry_after_s=wait_s)
    return DeadlineError(_too_late(time_s, depth, cost_s))


def _nearest(wanted: int, profile: DeviceProfile, served: Collection[int]) -> int:
    common = [depth for depth in profile.depths if depth in served]
    if not common:
        known = _list(profile.depths)
        raise NotFoundError(f"profile {profile.name} allows depths {known}, but this bundle serves {_list(served)}")
    return min(common, key=lambda depth: (abs(depth - wanted), -depth))


def _too_late(time_s: float, depth: int, cost_s: float | None) -> str:
    if time_s <= 0:
        return "the deadline has passed"
    cost = "has no measured cost" if cost_s is None else f"needs {_ms(cost_s)}"
    return f"{_ms(time_s)} left: depth {depth} {cost}; allow more time"


def _left(time_s: float, queue_s: float) -> str:
    return f"{_ms(time_s)} left, {_ms(queue_s)} of it in the queue"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _list(depths: Collection[int]) -> str:
    return ", ".join(map(str, sorted(depths)))
