"""Experiments as a client sees them: outcomes that it reports, and how they stand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fathom.client import arguments
from fathom.client.messages import Call
from fathom.errors import InvalidRequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb

Action = Literal["start", "stop", "promote"]


@dataclass(frozen=True)
class Outcome:
    """What a user did with an answer: of its ``request_id``, as "click" or "purchase", and how much, as a price.

    ``timestamp``: seconds since 1970; 0: now.
    """

    request_id: str
    kind: str
    value: float = 1.0
    item_id: str = ""
    timestamp: int = 0

    def message(self) -> pb.Outcome:
        """The message that goes over the wire."""
        return arguments.message(
            pb.Outcome,
            request_id=arguments.text("request_id", self.request_id),
            kind=arguments.text("kind", self.kind),
            value=arguments.number("value", self.value),
            item_id=arguments.text("item_id", self.item_id),
            timestamp=arguments.integer("timestamp", self.timestamp),
        )


@dataclass(frozen=True)
class ArmInfo:
    """An arm's share of its layer, and what one process of the server has answered with it."""

    share: float
    requests: int
    failed: int


@dataclass(frozen=True)
class ExperimentInfo:
    """How an experiment stands. ``phase``: stopped, running, promoted or rolled back; ``arm``: which, of the last two.

    ``reason``: why, where the server has changed it. ``since``: seconds since 1970. ``canary``: what its monitor says.
    """

    name: str
    phase: str
    arm: str
    reason: str
    since: int
    canary: str
    arms: Mapping[str, ArmInfo] = field(default_factory=dict)


def report_outcomes(outcomes: Iterable[Outcome]) -> Call[int]:
    """Outcomes of answers; the answer is how many some experiment is judged by."""
    messages = [each.message() for each in arguments.instances("outcomes", outcomes, Outcome)]
    request = pb.ReportOutcomesRequest(outcomes=messages)
    return Call("ReportOutcomes", request, lambda response: int(response.noted))


def list_experiments() -> Call[list[ExperimentInfo]]:
    """All of them."""
    return Call("ListExperiments", pb.ListExperimentsRequest(), lambda response: list(map(_info, response.experiments)))


def change_experiment(name: str, action: Action, arm: str) -> Call[ExperimentInfo]:
    """Start, stop or promote one."""
    if not isinstance(action, str) or action.upper() not in pb.ChangeExperimentRequest.Action.keys()[1:]:
        raise InvalidRequestError(f"action is {brief(action)}; start, stop or promote")
    request = arguments.message(
        pb.ChangeExperimentRequest,
        name=arguments.text("name", name),
        action=pb.ChangeExperimentRequest.Action.Value(action.upper()),
        arm=arguments.text("arm", arm),
    )
    return Call("ChangeExperiment", request, _info)


def _info(message: pb.ExperimentStatus) -> ExperimentInfo:
    arms = {each.name: ArmInfo(each.share, each.requests, each.failed) for each in message.arms}
    return ExperimentInfo(message.name, message.phase, message.arm, message.reason, message.since, message.canary, arms)
