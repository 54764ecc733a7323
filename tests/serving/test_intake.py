"""How many calls are begun: any number, unless the server is behind."""

from itertools import pairwise

from fathom.serving.intake import FEW, SHARE, SPAN_S, TURN_S, Intake
from fathom.serving.transport.contract import STALE_S

#: What a call takes of the event loop, and how many turns a span has here.
EACH_S, IN_A_SPAN = 1e-4, 50


class Turns:
    """Turns of the event loop, one after the other, on clocks of their own."""

    def __init__(self) -> None:
        self.now_s = self.cpu_s = 100.0
        self.intake = Intake(lambda: self.now_s, lambda: self.cpu_s)
        self.room = self.turn(0, 0)

    def turn(self, begun: int, answered: int, refused: int = 0, took_s: float | None = None) -> int | None:
        for _ in range(answered):
            self.intake.answered()
        began_s = self.now_s
        self.now_s += begun * EACH_S if took_s is None else took_s
        self.room = self.intake.note(began_s, begun, refused)
        return self.room

    def span(self, calls: int, most: int, *, cpu: float = 0.9) -> int:
        """So many calls arrive, of which the loop begins what there is room for, and answers at most so many.

        ``cpu``: what it takes of a core for all that. Returns how many were begun.
        """
        all_begun = 0
        for _ in range(IN_A_SPAN):
            until_s = self.now_s + 1.001 * SPAN_S / IN_A_SPAN
            arrived = calls // IN_A_SPAN
            begun = arrived if self.room is None else min(arrived, self.room)
            self.cpu_s += cpu * SPAN_S / IN_A_SPAN
            self.turn(begun, min(begun, most // IN_A_SPAN), arrived - begun)
            self.now_s = max(self.now_s, until_s)
            all_begun += begun
        return all_begun

    def fall_behind(self, answered: int) -> None:
        while not self.intake.behind:
            self.span(600, answered)


def test_bursts_and_slow_turns_are_no_reason_to_refuse() -> None:
    turns = Turns()
    for _ in range(3):
        assert turns.turn(1_000, 1_000, took_s=0.6 * SPAN_S) is None
        turns.now_s += SPAN_S
    for _ in range(100):  # a machine that is busy otherwise
        assert turns.turn(FEW, FEW, took_s=2 * TURN_S) is None
    assert not turns.intake.behind


def test_calls_that_cannot_be_answered_are_no_reason_while_the_loop_has_time() -> None:
    turns = Turns()
    for _ in range(10):
        turns.span(300, 0, cpu=0.2)
        assert turns.room is None


def test_a_server_that_answers_too_few_is_behind() -> None:
    turns = Turns()
    for _ in range(3):
        turns.span(600, 550)
    assert not turns.intake.behind
    for _ in range(2):
        turns.span(600, 300)
    assert turns.intake.behind


def test_a_server_whose_turns_stay_long_is_behind_though_it_answers_all() -> None:
    turns = Turns()
    for _ in range(3):
        turns.cpu_s += SPAN_S
        turns.turn(500, 500, took_s=1.1 * SPAN_S)
    assert turns.intake.behind


def test_one_turn_alone_may_be_a_pause_of_the_whole_process() -> None:
    turns = Turns()
    for _ in range(3):
        turns.span(100, 100, cpu=0.2)
        assert turns.turn(100, 100, took_s=3 * SPAN_S) is None
    turns.span(100, 100, cpu=0.2)
    assert not turns.intake.behind


def test_a_flood_is_found_out_in_the_span_in_which_it_begins() -> None:
    turns = Turns()
    for _ in range(3):
        turns.span(100, 100, cpu=0.2)
    began_s = turns.now_s
    while not turns.intake.behind:
        turns.turn(150, 150, took_s=0.015)
    assert turns.now_s - began_s < 1.1 * SPAN_S


def test_who_is_behind_begins_a_few_more_than_it_answers() -> None:
    turns = Turns()
    turns.fall_behind(answered=200)
    for _ in range(5):
        begun = turns.span(2_000, 200)
    assert SHARE * 200 <= begun <= SHARE * 200 + 10


def test_where_all_are_answered_more_are_begun_until_there_is_no_time() -> None:
    turns = Turns()
    turns.fall_behind(answered=50)
    begun = [turns.span(4_000, 4_000) for _ in range(12)]
    most = IN_A_SPAN * TURN_S / EACH_S
    assert all(now > min(2 * before, 0.9 * most) for before, now in pairwise(begun))
    assert all(0.9 * most <= each <= most for each in begun[4:])


def test_it_is_over_when_no_calls_come_any_more() -> None:
    turns = Turns()
    turns.fall_behind(answered=200)
    turns.now_s += 0.9 * STALE_S
    assert turns.intake.behind
    turns.now_s += 0.2 * STALE_S
    assert not turns.intake.behind
    assert turns.turn(1, 1) is None


def test_it_is_over_when_nothing_has_to_be_refused() -> None:
    turns = Turns()
    turns.fall_behind(answered=200)
    for _ in range(3):
        turns.span(1_000, 200)
    assert turns.intake.behind
    for _ in range(3):
        turns.span(100, 100, cpu=0.2)
    assert not turns.intake.behind


def test_now_and_then_it_tries_whether_it_can_bear_the_load() -> None:
    turns = Turns()
    turns.fall_behind(answered=200)
    spans = 0
    while turns.intake.behind:
        turns.span(400, 400, cpu=0.6)
        spans += 1
    assert 5 < spans < 60


def test_after_a_pause_it_soon_bears_what_it_bore_before() -> None:
    turns = Turns()
    for _ in range(3):
        turns.span(300, 300, cpu=0.5)
    while not turns.intake.behind:
        turns.span(300, 0, cpu=0.5)
    spans = 0
    while turns.intake.behind:
        turns.span(300, 300, cpu=0.5)
        spans += 1
    assert spans < 15


def test_a_load_that_is_hopeless_is_not_tried() -> None:
    turns = Turns()
    turns.fall_behind(answered=200)
    for _ in range(200):
        turns.span(2_000, 200, cpu=0.6)
        assert turns.intake.behind


def test_what_was_begun_too_much_at_first_is_not_made_up_for_by_standing_still() -> None:
    turns = Turns()
    turns.fall_behind(answered=100)
    turns.turn(5_000, 0, took_s=0.0)
    begun = [turns.span(2_000, 2_000) for _ in range(3)]
    assert begun[-1] > 100
