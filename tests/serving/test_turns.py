"""Heavy work takes turns: clients one after the other, and everything else between two pieces."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime.shares import Client
from fathom.serving.turns import Ring, Turns


class Pieces:
    """Notes whose pieces were done, in their order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.done: list[str] = []

    async def do(self, *client: str) -> None:
        """``client``: address, connection and name; one of them stands for all."""
        async with self.turns.take(Client(*client)):
            self.done.append(client[-1])


async def test_a_client_waits_for_one_piece_of_another_however_many_that_has() -> None:
    pieces = Pieces()
    await asyncio.gather(*(pieces.do("bomber") for _ in range(20)), *(pieces.do("other") for _ in range(3)))
    assert pieces.done[:7] == ["bomber", "bomber", "other", "bomber", "other", "bomber", "other"]
    assert pieces.done[7:] == ["bomber"] * 16


async def test_many_names_on_a_connection_have_the_turns_of_one_and_many_connections_those_of_one_address() -> None:
    pieces = Pieces()
    names = [("a", f"connection {i}", f"name {j}") for i in range(5) for j in range(5)]
    await asyncio.gather(*(pieces.do(*name) for name in names), *(pieces.do("b", "c", "other") for _ in range(3)))
    assert [place for place, name in enumerate(pieces.done) if name == "other"] == [2, 4, 6]


async def test_other_tasks_of_the_event_loop_run_between_two_pieces() -> None:
    pieces, rounds = Pieces(), 0
    seen: list[int] = []

    async def piece() -> None:
        async with pieces.turns.take(Client("bomber")):
            seen.append(rounds)

    async def other() -> None:
        nonlocal rounds
        while len(seen) < 10:
            rounds += 1
            await asyncio.sleep(0)

    await asyncio.gather(other(), *(piece() for _ in range(10)))
    assert all(later - earlier >= 3 for earlier, later in pairwise(seen))


async def test_who_does_not_wait_any_longer_keeps_nobody_waiting() -> None:
    pieces = Pieces()
    async with pieces.turns.take(Client("first")):
        gone = [asyncio.create_task(pieces.do("gone")) for _ in range(2)]
        last = asyncio.create_task(pieces.do("last"))
        await asyncio.sleep(0)
        gone[0].cancel()
    # The turn has gone to the second one by now, or to the last.
    gone[1].cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await asyncio.wait_for(last, 1)
    await asyncio.wait_for(pieces.do("again"), 1)


async def test_a_piece_that_fails_ends_its_turn() -> None:
    pieces = Pieces()
    with pytest.raises(ZeroDivisionError):
        async with pieces.turns.take(Client("one")):
            _ = 1 / 0
    await asyncio.wait_for(pieces.do("two"), 1)


PATHS = st.tuples(st.sampled_from("ab"), st.sampled_from("cde"))


@given(st.lists(PATHS, max_size=30), st.data())
def test_each_waits_for_one_of_every_other_path_whoever_leaves(
    paths: list[tuple[str, str]], data: st.DataObject
) -> None:
    ring: Ring[int] = Ring()
    for number, path in enumerate(paths):
        ring.add(path, number)
    left = data.draw(st.sets(st.sampled_from(range(len(paths)))) if paths else st.just(set()))
    for number in left:
        ring.remove(paths[number], number)
    stay = [number for number in range(len(paths)) if number not in left]
    order = []
    while ring:
        order.append(ring.pop())
    assert sorted(order) == stay
    for level in (1, 2):
        for path in {paths[number][:level] for number in stay}:
            turns = [paths[number][:level] for number in order if paths[number][: level - 1] == path[:-1]]
            first, *later = [place for place, each in enumerate(turns) if each == path]
            assert first < len(set(turns))
            assert all(after - before <= len(set(turns)) for before, after in pairwise([first, *later]))
    for path in set(paths):
        mine = [number for number in order if paths[number] == path]
        assert mine == sorted(mine)
