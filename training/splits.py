"""Two ways to cut a dataset into training, validation and test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ConfigError, DataError
from fathom.training.dataset import Dataset, Sequences

CHUNK_SCORES = 1 << 24  # scores of a chunk of cases: 64 MB
CHUNK_CASES = 512


@dataclass(frozen=True)
class Cases:
    """Questions with one right answer each: which item follows this history?

    histories: one sequence per case, oldest first, never empty, and asked when the item that followed came and in its
    context, where these are known; targets: int32 (n,), that item; users: int32 (n,), each user at most once.
    """

    histories: Sequences
    targets: NDArray[np.int32]
    users: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: NDArray[np.int64]) -> "Cases":
        """The chosen cases, rows (n,), in the given order."""
        return Cases(self.histories.select(rows), self.targets[rows], self.users[rows])

    def chunks(self, n_items: int) -> Iterator[NDArray[np.int64]]:
        """Rows of all cases, a chunk at a time: similar history lengths together, so that little of it is padding."""
        order = np.argsort(self.histories.lengths, kind="stable")
        size = min(CHUNK_CASES, max(1, CHUNK_SCORES // n_items))
        for start in range(0, len(order), size):
            yield order[start : start + size]


@dataclass(frozen=True)
class Split:
    """What to learn from and the cases to judge by.

    train: before validation and test; until_test: everything before the test targets, for what needs no
    validation (the baselines' floors are counted on it). Both have one sequence per user of the dataset,
    some perhaps empty.
    """

    name: str
    train: Sequences
    until_test: Sequences
    validation: Cases
    test: Cases


def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last event is the test target, the one before the validation target, the rest training.

    The validation history is the training part; the test history is that and the validation item. A user
    with fewer than three events has no case, and all events are for training.
    """
    sequences = dataset.sequences
    lengths = sequences.lengths
    from_end = np.repeat(sequences.offsets[1:], lengths) - np.arange(len(sequences.items))  # 1 = the last event
    kept_back = np.where(lengths >= 3, 2, 0)[sequences.owners]
    users = np.flatnonzero(lengths >= 3)
    train = sequences.keep(from_end > kept_back)
    until_test = sequences.keep(from_end > np.minimum(kept_back, 1))
    last = sequences.offsets[users + 1] - 1
    return Split(
        name="leave-one-out",
        train=train,
        until_test=until_test,
        validation=_cases(sequences, train, users, last - 1),
        test=_cases(sequences, until_test, users, last),
    )


def temporal(dataset: Dataset, quantile: float = 0.9) -> Split:
    """Cut at one moment for all users, so that nothing is learned from the future.

    The test moment T is the ``quantile`` of all timestamps (an actual timestamp), the validation moment V
    the same quantile of the events before T. Training is every event before V. A user's validation target
    is the first event in [V, T), the test target the first event at or after T; the history is all of the
    user's events before V or T, so each case is what a server would have been asked at that moment. A user
    without events before the moment has no case. Later events of [V, T) only serve as test history.

    Raises DataError when the data has no time or no case is left, ConfigError for an impossible quantile.
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"temporal split: the quantile must lie between 0 and 1, not {quantile}")
    sequences = dataset.sequences
    times = sequences.timestamps
    if times is None:
        raise DataError("temporal split: this dataset has no timestamps; use the leave-one-out split")
    test_s = int(np.quantile(times, quantile, method="higher"))
    earlier = times[times < test_s]
    if len(earlier) == 0:
        raise DataError("temporal split: all events share one time; use the leave-one-out split")
    validation_s = int(np.quantile(earlier, quantile, method="higher"))
    train = sequences.keep(times < validation_s)
    until_test = sequences.keep(times < test_s)
    split = Split(
        name="temporal",
        train=train,
        until_test=until_test,
        validation=_next_cases(sequences, train, test_s),
        test=_next_cases(sequences, until_test, None),
    )
    if min(len(split.validation), len(split.test)) == 0:
        raise DataError("temporal split: no user has events on both sides of the cut; choose another quantile")
    return split


SPLITS: dict[str, Callable[[Dataset], Split]] = {"leave-one-out": leave_one_out, "temporal": temporal}


def split(dataset: Dataset, name: str) -> Split:
    """Split by name; raises ConfigError for an unknown one."""
    if name not in SPLITS:
        raise ConfigError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
    return SPLITS[name](dataset)


def _next_cases(sequences: Sequences, before: Sequences, end_s: int | None) -> Cases:
    """The event that follows each user's ``before`` (a beginning of the whole sequence), if it is before end_s."""
    next_event = sequences.offsets[:-1] + before.lengths
    users = np.flatnonzero((before.lengths > 0) & (next_event < sequences.offsets[1:]))
    if end_s is not None and sequences.timestamps is not None:
        users = users[sequences.timestamps[next_event[users]] < end_s]
    return _cases(sequences, before, users, next_event[users])


def _cases(whole: Sequences, before: Sequences, users: NDArray[np.int64], targets: NDArray[np.int64]) -> Cases:
    """Cases of these users; ``targets``: places in ``whole`` of what followed their histories in ``before``."""
    histories = before.select(users)
    if whole.timestamps is not None:
        histories = replace(histories, asked=whole.timestamps[targets])
    if whole.contexts is not None:
        histories = replace(histories, asked_contexts=whole.contexts.select(targets))
    return Cases(histories, whole.items[targets].astype(np.int32), users.astype(np.int32))
