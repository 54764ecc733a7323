"""Shadow requests: copies of requests, which another arm answers while the engine is idle; nobody waits for them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fathom.errors import DeadlineError, OverloadError, UnavailableError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.pipeline import Leave
from fathom.runtime.query import Answer
from fathom.runtime.shares import Client
from fathom.serving.bundles import Bundles
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.treatment import Change
from fathom.serving.experiments.trial import Trial

#: Shadow requests that are answered at a time; no more are begun.
MOST_AT_ONCE = 8
#: Items of an answer that are compared, and logged.
GIVEN = 10
CLIENT = Client("shadow")

#: Errors of a server that has no time, which say nothing of an arm.
_BUSY = (DeadlineError, OverloadError, UnavailableError)


@dataclass(frozen=True)
class ShadowAnswer:
    """What a shadow request was given: the ids, best first; None and an error where it was given none."""

    deployment: Deployment | None
    given: Sequence[str]
    depth: int | None
    ms: float

    @property
    def error(self) -> bool:
        """Whether there was no answer."""
        return self.deployment is None


#: Gets the answer of a shadow request, None where there was no time for it.
OnAnswer = Callable[[ShadowAnswer | None], None]


class Shadows:
    """Used from one event loop. ``dropped``: shadow requests that there was no time for."""

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles
        self._under_way: set[_ShadowRequest] = set()
        self.dropped = 0

    def send(self, trial: Trial, bundle: str, change: Change, on_answer: OnAnswer) -> None:
        """Answer a copy of a trial's request soon, from this bundle unless the change names another."""
        if len(self._under_way) >= MOST_AT_ONCE:
            self._drop(on_answer)
            return
        copied = pb.RecommendRequest()
        copied.CopyFrom(trial.request)
        copied.bundle = bundle if not change.bundle else ""
        shadow = _ShadowRequest(trial, change.prepared(copied), change, on_answer)
        self._under_way.add(shadow)
        # The answer to the request itself goes first.
        asyncio.get_running_loop().call_soon(self._begin, shadow)

    def close(self) -> None:
        """Let go of those that are under way."""
        for shadow in list(self._under_way):
            shadow.leave()

    def _begin(self, shadow: "_ShadowRequest") -> None:
        try:
            deployment = self._bundles.choose(shadow.request.bundle)
            # Other shadow requests may wait as well.
            if deployment.pipeline.waiting >= len(self._under_way):
                self._under_way.discard(shadow)
                self._drop(shadow.on_answer)
                return
            # What is cached of it belongs to whom the request belongs to.
            trial = shadow.trial
            query, _ = deployment.decoder.query(shadow.request, None, CLIENT, trial.owner, trial.scope)
            shadow.leave = deployment.pipeline.enter(
                shadow.change.applied(query), partial(self._end, shadow, deployment)
            )
        except Exception as error:
            self._end(shadow, None, error)

    def _end(self, shadow: "_ShadowRequest", deployment: Deployment | None, answer: Answer | Exception) -> None:
        self._under_way.discard(shadow)
        ms = (time.perf_counter() - shadow.started_s) * 1e3
        if isinstance(answer, _BUSY):
            self._drop(shadow.on_answer)
        elif isinstance(answer, Exception) or deployment is None:
            shadow.on_answer(ShadowAnswer(None, (), None, ms))
        else:
            shadow.on_answer(ShadowAnswer(deployment, ids_of(deployment, answer), answer.choice.depth, ms))

    def _drop(self, on_answer: OnAnswer) -> None:
        self.dropped += 1
        on_answer(None)


class _ShadowRequest:
    """A shadow request under way."""

    def __init__(self, trial: Trial, request: pb.RecommendRequest, change: Change, on_answer: OnAnswer) -> None:
        self.trial, self.request, self.change, self.on_answer = trial, request, change, on_answer
        self.started_s = time.perf_counter()
        self.leave: Leave = lambda: None


def ids_of(deployment: Deployment, answer: Answer) -> list[str]:
    """The first items of an answer."""
    return [deployment.catalogue.id(int(index)) for index in answer.indices[:GIVEN]]


def agreement_of(given: Sequence[str], other: Sequence[str]) -> float | None:
    """The share of ``other`` that was given too; None where there is nothing to compare with."""
    return len(set(given) & set(other)) / len(other) if other else None
