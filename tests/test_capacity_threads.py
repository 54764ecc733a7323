"""Two threads on one core, simulated."""

import numpy as np
import pytest

from fathom.tools.capacity.threads import SharedCore, Thread


def ends(core: SharedCore, work: list[tuple[float, Thread, float]]) -> list[float]:
    """When each (arrival, thread, seconds) is done, in the order in which they are given."""
    found = [0.0] * len(work)

    def done(number: int, now_s: float) -> None:
        found[number] = now_s

    for number, (at_s, thread, seconds) in enumerate(work):
        core.advance(at_s)
        core.add(thread, seconds, lambda now_s, number=number: done(number, now_s))
    core.advance(np.inf)
    return found


def core_of(*delays_s: float, stalls_per_s: float = 0.0) -> SharedCore:
    return SharedCore(delays_s, stalls_per_s, [0.01], np.random.default_rng(0))


def test_a_thread_that_wakes_gets_the_core_at_once_or_after_its_delay() -> None:
    work = [(0.0, Thread.ENGINE, 10.0), (1.0, Thread.LOOP, 2.0)]
    assert ends(core_of(0.0), work) == pytest.approx([12.0, 3.0])
    assert ends(core_of(4.0), work) == pytest.approx([12.0, 7.0])


def test_nobody_waits_for_a_core_that_is_let_go() -> None:
    work = [(0.0, Thread.ENGINE, 2.0), (1.0, Thread.LOOP, 2.0)]
    assert ends(core_of(4.0), work) == pytest.approx([2.0, 4.0])


def test_who_was_interrupted_has_its_turn_after_the_longest_delay() -> None:
    work = [(0.0, Thread.ENGINE, 5.0), (1.0, Thread.LOOP, 10.0)]
    # 0 to 4 the engine, to 7 the loop, to 8 the engine, then the rest.
    assert ends(core_of(3.0), work) == pytest.approx([8.0, 15.0])


def test_pieces_of_one_thread_are_done_in_order_and_a_new_first_one_before_them() -> None:
    core, found = core_of(0.0), []
    core.add(Thread.LOOP, 1.0, lambda _: core.add(Thread.LOOP, 1.0, found.append, first=True))
    core.add(Thread.LOOP, 5.0, found.append)
    core.advance(np.inf)
    assert found == pytest.approx([2.0, 7.0])
    assert core.busy_s == pytest.approx(7.0)


def test_stalls_take_their_share_of_the_time() -> None:
    core = core_of(0.0, stalls_per_s=10.0)
    (end_s,) = ends(core, [(0.0, Thread.ENGINE, 100.0)])
    assert end_s == pytest.approx(110.0, rel=0.05)
