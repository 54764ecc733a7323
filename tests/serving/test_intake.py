"""How many calls are begun: any number, unless the server has been behind for a while."""

from fathom.serving.intake import BEHIND_S, FEW, MORE, TURN_S, Intake


class Turns:
    """Turns of the event loop, one after the other, on a clock of their own."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.intake = Intake(lambda: self.now_s)

    def turn(
        self, took_s: float, begun: int, let_in: int | None = None, refused: int = 0, *, left: bool = False
    ) -> int | None:
        began_s = self.now_s
        self.now_s += took_s
        return self.intake.note(began_s, begun, begun if let_in is None else let_in, refused, left=left)

    def fall_behind(self) -> None:
        while self.now_s <= 100 + BEHIND_S:
            self.turn(2 * TURN_S, 100, left=True)


def test_bursts_and_slow_turns_are_no_reason_to_refuse() -> None:
    turns = Turns()
    assert turns.turn(0.05, 1_000) is None
    assert turns.turn(0.04, 1_000, left=True) is None
    assert turns.turn(TURN_S / 2, 10) is None
    for _ in range(100):  # a machine that is busy otherwise
        assert turns.turn(2 * TURN_S, FEW) is None
    assert not turns.intake.behind


def test_who_stays_behind_has_room_for_what_fits_into_a_turn() -> None:
    turns = Turns()
    turns.fall_behind()
    assert turns.intake.behind
    for _ in range(100):
        room = turns.turn(TURN_S, 50, refused=10)
        assert room is not None
    assert 45 <= room <= 50 + MORE


def test_what_is_refused_later_anyhow_is_not_begun() -> None:
    turns = Turns()
    turns.fall_behind()
    for _ in range(100):
        room = turns.turn(TURN_S, 50, let_in=8, refused=10)
    assert room == MORE + 10


def test_it_ends_when_nothing_is_left_and_nothing_had_to_be_refused() -> None:
    turns = Turns()
    turns.fall_behind()
    assert turns.turn(TURN_S / 2, 20, refused=1) is not None
    assert turns.turn(TURN_S / 2, 20, left=True) is not None
    assert turns.turn(TURN_S / 2, 20) is None
    assert not turns.intake.behind
