"""What a request was told a moment ago: under overload, those like it with no more time are told the same at once."""

from collections.abc import Callable
from typing import TypeVar

from fathom.errors import DeadlineError, OverloadError
from fathom.runtime.shares import Client
from fathom.selector.choice import Choice, DepthReason, PolicyName

#: How long it holds. Estimates of the queue are no better than that.
FOR_S = 0.005
#: How long after a refusal others are likely.
PRESSED_S = 0.1
#: Kinds of requests that are remembered.
MOST = 1_024
#: What tells requests apart: whose it is, the depths that it may get, the one that it fixes, and what it costs, as the
#: length of a history.
Kind = tuple[Client, tuple[int, ...], int | None, int, PolicyName | None]
Told = Choice | DeadlineError | OverloadError
NOTHING: tuple[float, float, Told | None] = (0.0, 0.0, None)

#: What is decided: which depth, or only that there may be one.
Decided = TypeVar("Decided", bound=Choice | None)


class Recent:
    """Refusals for lack of time, and answers at depth 0 for the same reason; times in seconds of one clock."""

    def __init__(self) -> None:
        self._told: dict[Kind, tuple[float, float, Told]] = {}
        self._pressed_until_s = 0.0

    def press(self, now_s: float) -> None:
        """A request has been refused."""
        self._pressed_until_s = now_s + PRESSED_S

    def pressed(self, now_s: float) -> bool:
        """Whether one was refused so lately that others will be."""
        return now_s <= self._pressed_until_s

    def tell(self, kind: Kind, left_s: float, now_s: float, decide: Callable[[], Decided]) -> Choice | Decided:
        """What such a request with so much time left was told a moment ago, or else what ``decide`` says or raises."""
        told = self._find(kind, left_s, now_s)
        if told is not None:
            return told
        try:
            decided = decide()
        except (DeadlineError, OverloadError) as refused:
            self._note(kind, left_s, now_s, refused)
            raise
        if decided is not None and not decided.depth and decided.reason is DepthReason.DEADLINE and not decided.probe:
            self._note(kind, left_s, now_s, decided)
        return decided

    def _find(self, kind: Kind, left_s: float, now_s: float) -> Choice | None:
        until_s, most_s, told = self._told.get(kind) or NOTHING
        if told is None or now_s > until_s or not 0 < left_s <= most_s:
            return None
        if isinstance(told, OverloadError):
            raise OverloadError(str(told), retry_after_s=told.retry_after_s)
        if isinstance(told, DeadlineError):
            raise DeadlineError(str(told))
        return told

    def _note(self, kind: Kind, left_s: float, now_s: float, told: Told) -> None:
        if len(self._told) >= MOST:
            self._told.clear()
        self._told[kind] = now_s + FOR_S, left_s, told
