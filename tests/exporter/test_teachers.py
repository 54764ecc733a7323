"""Teachers and judges share no user, no case and no request."""

from dataclasses import replace

import numpy as np
import pytest

from fathom.exporter.bundle.teachers import are_teachers, case_digests, teaching_cases
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import leave_one_out, temporal

LONGEST = 20


def many(count: int = 900, *, items: int = 400, seed: int = 0) -> Dataset:
    """Users with 3 to 60 events, and no times."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 61, count)
    sequences = Sequences(
        rng.integers(0, items, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])
    )
    names = tuple(map(str, range(items)))
    users = tuple(map(str, range(count)))
    return Dataset(sequences, names, names, ((),) * items, users, {}, "d" * 64)


def windows(histories: Sequences) -> list[bytes]:
    return [history[-LONGEST:].tobytes() for history in histories]


def test_a_third_teaches_and_no_judges_history_is_among_their_requests() -> None:
    cut = leave_one_out(many())
    teachers = are_teachers(case_digests(cut.test, LONGEST))
    assert teachers.mean() == pytest.approx(1 / 3, abs=0.06)
    asked, whole = teaching_cases(cut, LONGEST, 2_000)
    judged = cut.test.select(np.flatnonzero(~teachers))
    assert not set(windows(asked.histories)) & set(windows(judged.histories))
    own = {
        *windows(cut.train.select(cut.test.users[teachers])),
        *windows(cut.until_test.select(cut.test.users[teachers])),
    }
    assert set(windows(asked.histories.select(np.flatnonzero(whole)))) <= own
    assert 500 < len(asked) <= 2_000
    assert (asked.targets == -1).all()


def test_a_judges_history_is_not_asked_even_as_a_part_of_a_teachers() -> None:
    """Strangers whose windows are the same are one request."""
    data = many(60, items=2, seed=1)
    sequences = data.sequences.keep(
        np.arange(len(data.sequences.items)) < np.repeat(data.sequences.offsets[:-1] + 5, data.sequences.lengths)
    )
    cut = leave_one_out(replace(data, sequences=sequences))
    judges = cut.test.select(np.flatnonzero(~are_teachers(case_digests(cut.test, LONGEST))))
    asked, _ = teaching_cases(cut, LONGEST, 2_000)
    found = windows(asked.histories)
    assert len(judges)
    assert not set(found) & set(windows(judges.histories))
    assert len(found) == len(set(found))


def test_nothing_was_trained_on_what_follows_a_request() -> None:
    cut = leave_one_out(many(30))
    asked, whole = teaching_cases(cut, 200, 2_000)
    ends = {tuple(part[user][-2:].tolist()) for part in (cut.train, cut.until_test) for user in range(30)}
    assert {tuple(history[-2:].tolist()) for history in asked.histories if len(history) > 1} <= ends
    lengths = asked.histories.lengths
    for user in np.unique(asked.users):
        own, all_of_it = lengths[asked.users == user], whole[asked.users == user]
        assert len(own) <= 8
        assert all_of_it.tolist() == [True] * 2 + [False] * (len(own) - 2)
        assert own[0] == own[1] + 1
        assert (np.diff(own[2:]) > 0).all()
        assert own[-1] < own[0]


def test_of_events_after_the_training_part_the_newest_end_a_history() -> None:
    times = np.tile(np.arange(40), 50)
    sequences = Sequences(
        np.random.default_rng(0).integers(0, 400, 2_000).astype(np.int32), np.arange(0, 2_001, 40), times
    )
    cut = temporal(replace(many(50), sequences=sequences))
    asked, whole = teaching_cases(cut, 200, 400)
    trained, known = int(cut.train.lengths[0]), int(cut.until_test.lengths[0])
    assert known > trained + 3
    assert set(asked.histories.lengths[whole].tolist()) == set(range(known - 3, known + 1))


def test_few_requests_come_from_many_users() -> None:
    asked, whole = teaching_cases(leave_one_out(many()), LONGEST, 300)
    assert 250 < len(asked) <= 300
    assert len(np.unique(asked.users)) == len(asked)
    assert whole.all()


def test_neither_the_order_of_users_nor_copies_change_what_is_asked() -> None:
    data = many(100)
    first, _ = teaching_cases(leave_one_out(data), LONGEST, 100_000)
    order = np.random.default_rng(2).permutation(100)
    for rows in (order, np.tile(order, 3)):
        again, _ = teaching_cases(leave_one_out(replace(data, sequences=data.sequences.select(rows))), LONGEST, 100_000)
        assert windows(again.histories) == windows(first.histories)


def test_copies_of_a_user_are_on_one_side() -> None:
    cut = leave_one_out(many(200))
    twice = cut.test.select(np.repeat(np.arange(200), 2))
    sides = are_teachers(case_digests(twice, LONGEST)).reshape(-1, 2)
    assert (sides[:, 0] == sides[:, 1]).all()


def test_where_everybody_would_judge_everybody_teaches() -> None:
    for seed in range(40):
        cut = leave_one_out(many(1, seed=seed))
        asked, whole = teaching_cases(cut, LONGEST, 100)
        assert len(asked) >= 1
        assert whole.any() or not are_teachers(case_digests(cut.test, LONGEST))[0]
