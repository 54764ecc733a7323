"""From complexity, profile and clock to a depth. Pure functions: whatever they need is an argument, time included.

``choose`` says how deep a request should go, ``fit_deadline`` how deep it still can go; the clock has the last word.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import DeadlineError, NotFoundError, OverloadError

#: How many times a deeper depth than the shallowest must leave time for the queue. At twice the load that the deepest
#: depth can bear, 4 answers far more requests in time than 1 (docs/log.md).
QUEUE_WEIGHT = 4
#: The same for the shallowest: the queue is an estimate, and who was let in should not be dropped later.
LEAST_WEIGHT = 1.25


class DepthReason(StrEnum):
    """Why a depth was chosen.

    Asked for; a simple or a complex request; as certified; always the deepest; the certificate no longer fits; or all
    that the deadline allows.
    """

    FIXED = "fixed"
    SIMPLE = "simple"
    COMPLEX = "complex"
    DEADLINE = "deadline"
    CERTIFIED = "certified"
    DEEPEST = "deepest"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class Decision:
    """The depth of one request; ``why`` is a sentence for a person.

    ``complexity`` is 0 (simple) to 1, and None where it was not asked for, because it had no say.
    """

    depth: int
    reason: DepthReason
    why: str
    complexity: float | None = None


def obey(depth: int, served_depths: Collection[int]) -> Decision:
    """The depth that a request asks for; raises NotFoundError when the bundle does not serve it."""
    if depth not in served_depths:
        raise NotFoundError(f"depth {depth} is not served here; there are {_list(served_depths)}")
    return Decision(depth, DepthReason.FIXED, f"depth {depth} was asked for")


def choose(complexity: float, profile: DeviceProfile, served_depths: Collection[int]) -> Decision:
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
    return Decision(depth, DepthReason.SIMPLE if simple else DepthReason.COMPLEX, why, complexity)


def fit_deadline(
    decision: Decision,
    *,
    now_s: float,
    deadline_s: float | None,
    queue_s: float,
    cost_p99_s: Mapping[int, float],
    allowed: Collection[int],
) -> Decision:
    """The decision itself when it meets the deadline, else the deepest shallower allowed depth that does.

    A depth fits when ``now_s + weight * queue_s + cost_p99_s[depth] <= deadline_s``, with LEAST_WEIGHT for the
    shallowest and QUEUE_WEIGHT for every other, so that under overload a queue is worked off by shallow answers long
    before requests must be refused. A depth without a measured cost never fits. All times are seconds, of one clock.
    A fixed depth is never replaced. When nothing fits, raises OverloadError where the shallowest would fit without the
    queue, else DeadlineError.
    """
    if deadline_s is None:
        return decision
    time_s, wanted = deadline_s - now_s, decision.depth
    fixed = decision.reason is DepthReason.FIXED
    depths = [wanted] if fixed else [*(d for d in sorted(allowed) if d < wanted), wanted]
    known = [d for d in depths if d in cost_p99_s]
    weights = [LEAST_WEIGHT, *(QUEUE_WEIGHT for _ in known[1:])]
    fitting = [d for d, weight in zip(known, weights, strict=False) if cost_p99_s[d] + weight * queue_s <= time_s]
    if not fitting:
        tried = known[0] if known else wanted
        raise refusal(tried, time_s=time_s, queue_s=queue_s, cost_s=cost_p99_s.get(tried))
    depth = fitting[-1]
    if depth == wanted:
        return decision
    why = f"{_left(time_s, queue_s)}: too little for depth {wanted}, depth {depth} needs {_ms(cost_p99_s[depth])}"
    return Decision(depth, DepthReason.DEADLINE, why, decision.complexity)


def probing(decision: Decision, least: int) -> Decision:
    """The decision for a request that ``fit_deadline`` refuses, but that is run to see whether it still has to.

    ``least``: the shallowest depth that the request may have.
    """
    if decision.depth == least:
        return decision
    why = f"no depth seems to fit the deadline, but nothing has run for a while: depth {least} is tried"
    return Decision(least, DepthReason.DEADLINE, why, decision.complexity)


def fits(queue_s: float, cost_s: float, time_s: float) -> bool:
    """Whether ``fit_deadline`` leaves any depth of this cost as it is."""
    return cost_s + QUEUE_WEIGHT * queue_s <= time_s


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
