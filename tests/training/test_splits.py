"""Splits: what is judged is never learned, and never comes before what is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ConfigError, DataError
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import Cases, leave_one_out, split, temporal


def dataset(users: list[list[int]], times: list[list[int]] | None = None) -> Dataset:
    items = np.array([item for user in users for item in user], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    stamps = None if times is None else np.array([t for user in times for t in user], dtype=np.int64)
    n = int(items.max()) + 1
    return Dataset(
        sequences=Sequences(items, offsets, stamps),
        item_ids=tuple(map(str, range(n))),
        titles=("",) * n,
        categories=((),) * n,
        user_ids=tuple(map(str, range(len(users)))),
        meta={},
        sha256="",
    )


def rows(cases: Cases) -> list[tuple[int, list[int], int]]:
    return [(int(u), h.tolist(), int(t)) for u, h, t in zip(cases.users, cases.histories, cases.targets, strict=True)]


def test_leave_one_out_takes_the_last_for_test_and_the_one_before_for_validation() -> None:
    cut = leave_one_out(dataset([[0, 1, 2, 3], [4, 5], [6, 7, 8], [9]]))
    assert [part.tolist() for part in cut.train] == [[0, 1], [4, 5], [6], [9]]
    assert [part.tolist() for part in cut.until_test] == [[0, 1, 2], [4, 5], [6, 7], [9]]
    assert rows(cut.validation) == [(0, [0, 1], 2), (2, [6], 7)]
    assert rows(cut.test) == [(0, [0, 1, 2], 3), (2, [6, 7], 8)]
    assert cut.test.targets.dtype == cut.test.users.dtype == np.int32


def test_temporal_asks_each_user_for_the_first_event_after_the_moment() -> None:
    times = [[0, 10, 81, 95], [5, 85, 86, 99], [20, 30], [92, 93], [40, 50, 60, 70]]
    data = dataset([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11], [12, 13, 14, 15]], times)
    cut = temporal(data, 0.75)
    # The .75 quantile of the 16 times is 92, that of the 12 before it is 81.
    assert [part.tolist() for part in cut.train] == [[0, 1], [4], [8, 9], [], [12, 13, 14, 15]]
    assert rows(cut.validation) == [(0, [0, 1], 2), (1, [4], 5)]
    assert rows(cut.test) == [(0, [0, 1, 2], 3), (1, [4, 5, 6], 7)]
    assert cut.test.histories.times(1).tolist() == [5, 85, 86]  # type: ignore[union-attr]


def test_temporal_refuses_data_without_time_or_without_two_sides() -> None:
    with pytest.raises(DataError, match="no timestamps; use the leave-one-out split"):
        temporal(dataset([[0, 1, 2]]))
    with pytest.raises(DataError, match="all events share one time"):
        temporal(dataset([[0, 1, 2]], [[5, 5, 5]]))
    with pytest.raises(DataError, match="no user has events on both sides"):
        temporal(dataset([[0, 1], [2, 3]], [[1, 2], [8, 9]]))
    with pytest.raises(ConfigError, match=r"between 0 and 1, not 1\.5"):
        temporal(dataset([[0, 1]], [[1, 2]]), 1.5)


def test_splits_go_by_name_and_an_unknown_name_lists_the_known() -> None:
    assert split(dataset([[0, 1, 2]]), "leave-one-out").name == "leave-one-out"
    with pytest.raises(ConfigError, match="unknown split 'random'; known: leave-one-out, temporal"):
        split(dataset([[0, 1, 2]]), "random")


histories = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(deadline=None)
@given(users=histories, seed=st.integers(0, 1000), name=st.sampled_from(["leave-one-out", "temporal"]))
def test_no_split_leaks_what_it_judges(users: list[list[int]], seed: int, name: str) -> None:
    # Items are unique events here (event number = item), so that leaks can be seen.
    numbered, next_item = [], 0
    for user in users:
        numbered.append(list(range(next_item, next_item + len(user))))
        next_item += len(user)
    rng = np.random.default_rng(seed)
    times = [sorted(rng.integers(0, 40, len(user)).tolist()) for user in users]
    when = np.array([t for user in times for t in user])
    try:
        cut = split(dataset(numbered, times), name)
    except DataError:
        return
    trained = set(cut.train.items.tolist())
    validated, tested = set(cut.validation.targets.tolist()), set(cut.test.targets.tolist())
    assert not trained & (validated | tested)
    assert not validated & tested
    assert not tested & set(cut.until_test.items.tolist())
    assert len(cut.train) == len(cut.until_test) == len(users)
    for cases in (cut.validation, cut.test):
        assert len(set(cases.users.tolist())) == len(cases)
        for user, history, target in rows(cases):
            assert history, "a case without a history cannot be asked"
            assert [*history, target] == numbered[user][: len(history) + 1]
    if name == "temporal" and tested:
        moment = min(when[list(tested)])
        assert when[list(trained | validated)].max() < moment
        assert when[cut.test.histories.items].max() < moment
        assert when[list(trained)].max() < when[list(validated)].min()
