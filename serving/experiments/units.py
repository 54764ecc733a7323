"""What of a request an experiment can go by."""

import math
from uuid import uuid4

from fathom.errors import InvalidRequestError
from fathom.experiments.config import Experiment, Unit
from fathom.experiments.exposures import Outcome
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.principal import Tenant
from fathom.serving.limits import check_id

MOST_OUTCOMES, LONGEST_KIND_BYTES = 1_000, 64


def units_of(request: pb.RecommendRequest, tenant: Tenant) -> dict[Unit, str]:
    """Who or what may be given an arm; those of tenants never meet. Without a ``request_id`` there is a new one."""
    found: dict[Unit, str] = {"request": request.request_id or uuid4().hex}
    if request.user_id:
        found["user"] = tenant.key_of(request.user_id)
    if request.session_id:
        found["session"] = tenant.key_of(request.session_id, "session_id")
    return found


def outcomes_of(request: pb.ReportOutcomesRequest, tenant: Tenant, now_s: float) -> list[Outcome]:
    """The outcomes of a message; raises InvalidRequestError where one contradicts the contract."""
    if not 1 <= len(request.outcomes) <= MOST_OUTCOMES:
        raise InvalidRequestError(f"the message has {len(request.outcomes)} outcomes; send 1 to {MOST_OUTCOMES}")
    return [_outcome(each, tenant, now_s) for each in request.outcomes]


def _outcome(each: pb.Outcome, tenant: Tenant, now_s: float) -> Outcome:
    check_id("request_id", each.request_id)
    size = len(each.kind.encode())
    if not 1 <= size <= LONGEST_KIND_BYTES:
        raise InvalidRequestError(f"kind has {size} bytes, 1 to {LONGEST_KIND_BYTES}")
    if each.item_id:
        check_id("item_id", each.item_id)
    value = each.value if each.HasField("value") else 1.0
    if not math.isfinite(value):
        raise InvalidRequestError(f"the value of a {each.kind} is {value}; send a number")
    if each.timestamp < 0:
        raise InvalidRequestError("a timestamp is negative; send seconds since 1970")
    return Outcome(
        float(each.timestamp or now_s), tenant.key_of(each.request_id, "request_id"), each.kind, value, each.item_id
    )


def events_before(request: pb.RecommendRequest, since_s: float) -> float | None:
    """How many events a user had before a moment: known before the arm, so it can explain what comes of it (CUPED)."""
    if not request.user_id or len(request.timestamps) != len(request.item_ids):
        return None
    return float(sum(each < since_s for each in request.timestamps))


def kinds_of(experiment: Experiment) -> set[str]:
    """The kinds of outcomes that an experiment is judged by."""
    metrics = [*experiment.guards.values(), *((experiment.primary,) if experiment.primary else ())]
    return {metric.outcome for metric in metrics if metric.outcome is not None}
