"""One request that takes part in experiments, from its arms to its answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fathom.errors import InvalidRequestError, PermissionDeniedError, UnauthenticatedError
from fathom.experiments.assignment import Assignment
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.pipeline import Leave
from fathom.runtime.query import Answer
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.treatment import NO_CHANGE, Change

#: The caller's own mistakes: without the arm they would be the same.
_CALLERS = (InvalidRequestError, PermissionDeniedError, UnauthenticatedError)

#: Gets an encoded answer, or why there is none.
Done = Callable[[bytes | Exception], None]
#: Begins to answer the request with a change.
Begin = Callable[[Change, Done], Leave]


class Observer(Protocol):
    """Hears what became of a request."""

    def answered(self, trial: "Trial", deployment: Deployment, answer: Answer, ms: float, /) -> None:
        """It has its answer."""

    def failed(self, trial: "Trial", error: Exception, ms: float, /) -> None:
        """Its arms gave no answer."""


@dataclass(eq=False)
class Trial:
    """``request``: as it came, with its history. ``arms`` and ``shadows`` (experiment, shadow) that it has.

    ``unit_hash``, ``request_id``: as logs call its unit and itself.
    """

    observer: Observer
    request: pb.RecommendRequest
    change: Change
    arms: Sequence[Assignment] = ()
    shadows: Sequence[tuple[str, str]] = ()
    unit_hash: str = ""
    request_id: str = ""
    started_s: float = field(default_factory=time.perf_counter)
    failed: bool = False

    @property
    def labels(self) -> list[pb.ExperimentArm]:
        """As the answer says them; none where it is given without them."""
        if self.failed:
            return []
        return [pb.ExperimentArm(experiment=each.experiment, arm=each.arm) for each in self.arms]

    def enter(self, begin: Begin, done: Done) -> Leave:
        """Answer with the change; what fails because of it is answered without, so that no arm costs an answer."""
        if self.change == NO_CHANGE:
            return begin(NO_CHANGE, done)
        leave: list[Leave] = []

        def without(error: Exception) -> None:
            self._failed(error)
            leave[:] = [begin(NO_CHANGE, done)]

        def changed(answer: bytes | Exception) -> None:
            if not isinstance(answer, Exception) or isinstance(answer, _CALLERS):
                done(answer)
                return
            try:
                without(answer)
            except Exception as error:
                done(error)

        try:
            found = begin(self.change, changed)
            leave = leave or [found]
        except _CALLERS:
            raise
        except Exception as error:
            without(error)
        return lambda: leave[0]()

    def answered(self, deployment: Deployment, answer: Answer) -> None:
        """It has its answer: log it, tell the canary's monitor, and let shadows answer it too."""
        if not self.failed:
            self.observer.answered(self, deployment, answer, self._ms())

    def _failed(self, error: Exception) -> None:
        """The arm gave no answer."""
        self.failed = True
        self.observer.failed(self, error, self._ms())

    def _ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1e3
