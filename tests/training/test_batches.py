import numpy as np
import pytest

from fathom.training.batches import cut_windows, epoch_batches, history_batches, make_batch, pad_histories
from fathom.training.dataset import Sequences


def sequences(*lengths: int, times: bool = False) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return Sequences(items, offsets, 1000 + np.arange(len(items)) if times else None)


@pytest.mark.parametrize("seed", range(5))
def test_windows_use_every_event_but_the_last_of_a_sequence_as_input_exactly_once(seed: int) -> None:
    lengths = np.array([0, 1, 2, 9, 50])
    rows = cut_windows(lengths, 8, np.random.default_rng(seed))
    assert (rows[:, 2] - rows[:, 1]).max() <= 8
    for user, length in enumerate(lengths):
        inputs = [i for owner, start, stop in rows if owner == user for i in range(start, stop)]
        assert inputs == list(range(max(length - 1, 0)))


def test_batches_hold_every_window_and_keep_the_token_budget() -> None:
    train = sequences(3, 30, 30, 7, 100)
    batches = epoch_batches(train, window=10, tokens=40, rng=np.random.default_rng(0))
    inputs = sum(int((rows[:, 2] - rows[:, 1]).sum()) for rows in batches)
    assert inputs == 2 + 29 + 29 + 6 + 99
    assert all(len(rows) * (rows[:, 2] - rows[:, 1]).max() <= 40 for rows in batches)


def test_a_batch_is_padded_on_the_left_and_looks_ahead_past_its_window() -> None:
    train = sequences(6, 3, times=True)
    batch = make_batch(train, np.array([[0, 1, 4], [1, 0, 2]]), 2)
    assert batch.items.tolist() == [[2, 3, 4], [0, 1, 2]]
    assert batch.ahead.tolist() == [[[2, 3], [3, 4], [4, 5]], [[-1, 1], [1, 2], [2, -1]]]
    assert batch.timestamps is not None
    assert batch.timestamps.tolist() == [[1001, 1002, 1003], [0, 1006, 1007]]


def test_histories_keep_their_newest_items() -> None:
    items, times = pad_histories(sequences(2, 5, times=True), np.array([0, 1]), 3)
    assert items.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert times is not None
    assert times.tolist() == [[0, 1000, 1001], [1004, 1005, 1006]]


def test_history_batches_cover_every_history_once_within_the_token_budget() -> None:
    histories = sequences(1, 9, 4, 4, 20, 2)
    seen = []
    for rows, items, _ in history_batches(histories, max_history=8, tokens=16):
        assert items.numel() <= 16
        seen += rows.tolist()
    assert sorted(seen) == list(range(6))
