"""One request that takes part in experiments, from its arms to its answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fathom.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from fathom.experiments.assignment import Assignment
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.pipeline import Leave
from fathom.runtime.prefix_cache import Owner
from fathom.runtime.query import Answer
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.treatment import NO_CHANGE, Change
from fathom.serving.logs import Seldom

#: The caller's own mistakes, unless an arm has another bundle.
_CALLERS = (InvalidRequestError, PermissionDeniedError, UnauthenticatedError)
#: There was no time. Trying again without the arm would double the load that caused it.
_NO_TIME = (DeadlineError, OverloadError)

#: Gets an encoded answer, or why there is none.
Done = Callable[[bytes | Exception], None]
#: Begins to answer the request with a change.
Begin = Callable[[Change, Done], Leave]

log = Seldom("fathom.serving")


class Observer(Protocol):
    """Hears what became of a request."""

    def answered(self, trial: "Trial", deployment: Deployment, answer: Answer, ms: float, /) -> None:
        """It was answered by its arms."""

    def failed(self, trial: "Trial", error: Exception, ms: float, /) -> None:
        """Its arms could not answer it, although it can be answered without them."""

    def missed(self, trial: "Trial", ms: float, /) -> None:
        """There was no time for it."""


@dataclass(eq=False)
class Trial:
    """``request``: as it came, with its history, which ``owner`` and ``scope`` belong to.

    ``arms`` and ``shadows`` (experiment, shadow) that it has. ``unit_hash``, ``request_id``: as logs call its unit and
    itself.
    """

    observer: Observer
    request: pb.RecommendRequest
    change: Change
    owner: Owner | None = None
    scope: bytes = b""
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
        """Answer with the change. What fails because of it is answered without, so that no arm costs an answer."""
        leave: list[Leave] = []

        def without(error: Exception) -> None:
            """Answer without the arms; only if that works the failure was theirs."""

            def told(answer: bytes | Exception) -> None:
                if not isinstance(answer, Exception):
                    self._tell(self.observer.failed, self, error, self._ms())
                done(answer)

            self.failed = True
            leave[:] = [begin(NO_CHANGE, told)]

        def changed(answer: bytes | Exception) -> None:
            if not isinstance(answer, Exception) or not self._is_arms(answer):
                done(answer)
                return
            try:
                without(answer)
            except Exception as error:
                done(error)

        try:
            found = begin(self.change, changed)
            leave = leave or [found]
        except Exception as error:
            if not self._is_arms(error):
                raise
            without(error)
        return lambda: leave[0]()

    def answered(self, deployment: Deployment, answer: Answer) -> None:
        """It has its answer, from its arms or without them."""
        if not self.failed:
            self._tell(self.observer.answered, self, deployment, answer, self._ms())

    def _is_arms(self, error: Exception) -> bool:
        """Whether an error may be due to the arms."""
        if isinstance(error, _NO_TIME):
            self._tell(self.observer.missed, self, self._ms())
            return False
        if self.change.bundle:  # which may know less than the request asks for, as a feature of its context
            return True
        return self.change != NO_CHANGE and not isinstance(error, _CALLERS)

    def _ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1e3

    @staticmethod
    def _tell(hear: Callable[..., None], *what: object) -> None:
        """An experiment's own fault never costs an answer."""
        try:
            hear(*what)
        except Exception as error:
            log.warning("an experiment cannot take note of a request: %r", error)
