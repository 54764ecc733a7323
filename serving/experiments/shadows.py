"""Copies of requests, answered by another arm while the engine has nothing else to do; nobody waits for them."""

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

#: Copies that are answered at a time; no more are begun.
MOST_AT_ONCE = 8
#: Items of an answer that are compared, and logged.
GIVEN = 10
CLIENT = Client("shadow")

#: Errors of a server that has no time, which say nothing of an arm.
_BUSY = (DeadlineError, OverloadError, UnavailableError)


@dataclass(frozen=True)
class Copied:
    """What became of a copy: the ids that it was given, best first; None and an error where it was given none."""

    deployment: Deployment | None
    given: Sequence[str]
    depth: int | None
    ms: float

    @property
    def error(self) -> bool:
        """Whether there was no answer."""
        return self.deployment is None


#: Gets what became of a copy, None where there was no time for it.
Told = Callable[[Copied | None], None]


class Shadows:
    """Used from one event loop. ``dropped``: copies that there was no time for."""

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles
        self._under_way: set[_Copy] = set()
        self.dropped = 0

    def copy(self, trial: Trial, bundle: str, change: Change, told: Told) -> None:
        """Answer a copy of a trial's request soon, from this bundle unless the change names another."""
        if len(self._under_way) >= MOST_AT_ONCE:
            self._drop(told)
            return
        copied = pb.RecommendRequest()
        copied.CopyFrom(trial.request)
        copied.bundle = bundle if not change.bundle else ""
        copy = _Copy(trial, change.prepared(copied), change, told)
        self._under_way.add(copy)
        # The answer that it is a copy of goes first.
        asyncio.get_running_loop().call_soon(self._begin, copy)

    def close(self) -> None:
        """Let go of those that are under way."""
        for copy in list(self._under_way):
            copy.leave()

    def _begin(self, copy: "_Copy") -> None:
        try:
            deployment = self._bundles.choose(copy.request.bundle)
            # Other copies may wait as well.
            if deployment.pipeline.waiting >= len(self._under_way):
                self._under_way.discard(copy)
                self._drop(copy.told)
                return
            # What is cached of it belongs to whom the request belongs to.
            trial = copy.trial
            query, _ = deployment.converter.query(copy.request, None, CLIENT, trial.owner, trial.scope)
            copy.leave = deployment.pipeline.enter(copy.change.applied(query), partial(self._end, copy, deployment))
        except Exception as error:
            self._end(copy, None, error)

    def _end(self, copy: "_Copy", deployment: Deployment | None, answer: Answer | Exception) -> None:
        self._under_way.discard(copy)
        ms = (time.perf_counter() - copy.started_s) * 1e3
        if isinstance(answer, _BUSY):
            self._drop(copy.told)
        elif isinstance(answer, Exception) or deployment is None:
            copy.told(Copied(None, (), None, ms))
        else:
            copy.told(Copied(deployment, ids_of(deployment, answer), answer.choice.depth, ms))

    def _drop(self, told: Told) -> None:
        self.dropped += 1
        told(None)


class _Copy:
    """One copy under way."""

    def __init__(self, trial: Trial, request: pb.RecommendRequest, change: Change, told: Told) -> None:
        self.trial, self.request, self.change, self.told = trial, request, change, told
        self.started_s = time.perf_counter()
        self.leave: Leave = lambda: None


def ids_of(deployment: Deployment, answer: Answer) -> list[str]:
    """The first items of an answer."""
    return [deployment.catalogue.id(int(index)) for index in answer.indices[:GIVEN]]


def agreement_of(given: Sequence[str], other: Sequence[str]) -> float | None:
    """The share of ``other`` that was given too; None where there is nothing to compare with."""
    return len(set(given) & set(other)) / len(other) if other else None
