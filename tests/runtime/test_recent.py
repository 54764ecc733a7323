"""Under overload, requests that are like one a moment ago are told the same."""

import pytest

from fathom.errors import DeadlineError, OverloadError
from fathom.runtime.recent import FOR_S, PRESSED_S, Kind, Recent
from fathom.runtime.shares import Client
from fathom.selector.choice import Choice, DepthReason

KIND: Kind = (Client(), (0, 4), None, 50)
COUNTED = Choice(0, DepthReason.DEADLINE, "too little time")
DEEP = Choice(4, DepthReason.SIMPLE, "a simple request")


class Asked:
    """A decision that is counted, and can be an error."""

    def __init__(self, outcome: Choice | Exception) -> None:
        self.outcome = outcome
        self.times = 0

    def __call__(self) -> Choice:
        self.times += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_who_has_no_more_time_is_told_the_same_for_a_moment() -> None:
    recent, asked = Recent(), Asked(COUNTED)
    for left_s, now_s in ((0.02, 1.0), (0.02, 1.001), (0.01, 1.0 + FOR_S)):
        assert recent.tell(KIND, left_s, now_s, asked) == COUNTED
    assert asked.times == 1
    recent.tell(KIND, 0.021, 1.002, asked)
    recent.tell((*KIND[:3], 200), 0.02, 1.002, asked)
    recent.tell(KIND, 0.01, 1.1, asked)
    assert asked.times == 4


@pytest.mark.parametrize("error", [OverloadError("full", retry_after_s=0.5), DeadlineError("late")])
def test_a_refusal_is_repeated_with_its_retry_hint_and_not_prolonged_by_repeating(error: Exception) -> None:
    recent, asked = Recent(), Asked(error)
    for now_s in (1.0, 1.0 + FOR_S / 2, 1.0 + FOR_S, 1.0 + 1.2 * FOR_S):
        with pytest.raises(type(error)) as caught:
            recent.tell(KIND, 0.02, now_s, asked)
        assert str(caught.value) == str(error)
        assert getattr(caught.value, "retry_after_s", None) == getattr(error, "retry_after_s", None)
    assert asked.times == 2


def test_what_had_time_is_decided_anew() -> None:
    recent, asked = Recent(), Asked(DEEP)
    for _ in range(3):
        assert recent.tell(KIND, 0.02, 1.0, asked) == DEEP
    assert asked.times == 3


def test_what_is_too_late_already_is_not_told_what_others_were() -> None:
    recent, asked = Recent(), Asked(DeadlineError("10 ms left"))
    with pytest.raises(DeadlineError):
        recent.tell(KIND, 0.01, 1.0, asked)
    with pytest.raises(DeadlineError):
        recent.tell(KIND, -0.01, 1.0, asked)
    assert asked.times == 2


def test_who_is_only_asked_whether_there_may_be_an_answer_is_told_what_others_were() -> None:
    recent, admitted = Recent(), Asked(COUNTED)
    recent.tell(KIND, 0.02, 1.0, admitted)
    refuse = Asked(DeadlineError("10 ms left"))
    assert recent.tell(KIND, 0.02, 1.001, refuse) == COUNTED
    assert recent.tell(KIND, 0.03, 1.001, lambda: None) is None
    with pytest.raises(DeadlineError):
        recent.tell(KIND, 0.03, 1.001, refuse)
    with pytest.raises(DeadlineError):
        recent.tell(KIND, 0.03, 1.002, lambda: None)


def test_after_a_refusal_others_are_likely_for_a_while() -> None:
    recent = Recent()
    assert not recent.pressed(1.0)
    recent.press(1.0)
    assert recent.pressed(1.0 + PRESSED_S / 2)
    assert not recent.pressed(1.0 + 2 * PRESSED_S)
