"""The time of a request: what is learned of it, and what of that is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import evaluate_model
from fathom.training.metrics import Interval
from fathom.training.model import ElasticModel, ModelSettings
from fathom.training.presets import TrainSettings
from fathom.training.request_time import BUCKETS, UNKNOWN, RequestTime, gap_shares, gaps_of
from fathom.training.request_time_fit import fit_request_time
from fathom.training.scorer import exit_scorer
from fathom.training.splits import leave_one_out

ITEMS, USERS, EVENTS, MINUTE, MONTH = 20, 120, 12, 60, 30 * 86_400
SETTINGS = TrainSettings(window=16, batch_tokens=32, targets_ahead=1)


@pytest.fixture
def model() -> ElasticModel:
    torch.manual_seed(0)
    return ElasticModel(ModelSettings(width=16, heads=1, layers=2, depths=(1, 2), span=16).for_items(ITEMS)).eval()


@pytest.fixture
def told_by_gaps(dataset_of) -> Dataset:
    """After a minute follows one of the first ten items, after a month one of the others; nothing else tells."""
    rng = np.random.default_rng(0)
    late = rng.random((USERS, EVENTS)) < 0.5
    items = np.stack([rng.permutation(10)[:, None] + [0, 10] for _ in range(USERS)])
    events = []
    for user in range(USERS):
        early_left, late_left = list(items[user, :, 0]), list(items[user, :, 1])
        events += [
            late_left.pop() if (each and late_left) or not early_left else early_left.pop() for each in late[user]
        ]
    chosen = np.array(events, np.int32)
    gaps = np.where(chosen < 10, MINUTE, MONTH).reshape(USERS, EVENTS)
    times = (1_000_000_000 + np.cumsum(gaps, axis=1)).ravel()
    return dataset_of(Sequences(chosen, np.arange(USERS + 1) * EVENTS, times))


@pytest.fixture
def dataset_of():
    def made(sequences: Sequences) -> Dataset:
        names = tuple(map(str, range(ITEMS)))
        users = tuple(map(str, range(len(sequences))))
        return Dataset(sequences, names, names, ((),) * ITEMS, users, {}, "0" * 64)

    return made


def test_a_case_is_asked_when_its_target_came(told_by_gaps: Dataset) -> None:
    cut, whole = leave_one_out(told_by_gaps), told_by_gaps.sequences
    for cases, back in ((cut.test, 1), (cut.validation, 2)):
        assert cases.histories.asked.tolist() == whole.timestamps[whole.offsets[1:] - back].tolist()
    some = cut.test.select(np.array([3, 1]))
    assert some.histories.asked.tolist() == cut.test.histories.asked[[3, 1]].tolist()


def test_a_gap_is_unknown_where_either_time_is() -> None:
    offsets, times = np.array([0, 2, 4, 6, 6]), np.array([5, 10, 0, 0, 5, 10])
    histories = Sequences(np.zeros(6, np.int32), offsets, times, asked=np.array([17, 17, 8, 17]))
    assert gaps_of(histories).tolist() == [7, UNKNOWN, 0, UNKNOWN]
    assert gaps_of(replace(histories, asked=None)).tolist() == 4 * [UNKNOWN]


def test_a_gap_counts_the_two_buckets_around_it() -> None:
    shares = gap_shares(np.array([0, 1, 2, 2**29 - 1, 2**40, UNKNOWN]))
    assert shares.shape == (6, BUCKETS)
    np.testing.assert_allclose(shares.sum(axis=1), [1, 1, 1, 1, 0, 0], atol=1e-6)
    assert (shares[0, 0], shares[1, 1], shares[3, -1]) == (1, 1, 1)
    np.testing.assert_allclose(shares[2, 1:3], [2 - np.log2(3), np.log2(3) - 1], rtol=1e-6)


def test_what_gaps_tell_is_learned_and_helps(model: ElasticModel, told_by_gaps: Dataset) -> None:
    cut, before = leave_one_out(told_by_gaps), {k: v.clone() for k, v in model.state_dict().items()}
    found = fit_request_time(model, SETTINGS, cut)
    assert found is not None
    assert 0 < found.gain.low < found.gain.high
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = evaluate_model(model, told_by_gaps, cut, request_time=found, baselines=())
    for depth in (1, 2):
        names = f"depth {depth}", f"depth {depth} untimed"
        timed, plain = (report.systems[name].metrics["ndcg@10"].value for name in names)
        assert timed > 1.1 * plain


def test_the_same_model_gives_the_same_changes(model: ElasticModel, told_by_gaps: Dataset) -> None:
    cut = leave_one_out(told_by_gaps)
    first, again = (fit_request_time(model, SETTINGS, cut) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.changes.tobytes() == again.changes.tobytes()


def test_a_gap_that_was_hardly_ever_seen_changes_nothing(model: ElasticModel, told_by_gaps: Dataset) -> None:
    found = fit_request_time(model, SETTINGS, leave_one_out(told_by_gaps))
    assert found is not None
    learned = np.flatnonzero(found.changes.any(axis=(1, 2)))
    assert learned.tolist() == [5, 6, 21, 22]


def test_without_times_or_where_they_tell_nothing_there_is_none(model: ElasticModel, told_by_gaps: Dataset) -> None:
    sequences = told_by_gaps.sequences
    untimed = replace(told_by_gaps, sequences=replace(sequences, timestamps=None))
    assert fit_request_time(model, SETTINGS, leave_one_out(untimed)) is None
    off = SETTINGS.model_copy(update={"request_time": "off"})
    assert fit_request_time(model, off, leave_one_out(told_by_gaps)) is None
    even = replace(sequences, timestamps=np.tile(np.arange(EVENTS) * MINUTE + 1_000_000_000, USERS))
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)]).astype(np.int32)
    even = replace(even, items=items)
    assert fit_request_time(model, SETTINGS, leave_one_out(replace(told_by_gaps, sequences=even))) is None


def test_a_history_whose_time_is_unknown_gets_what_it_would_without(model: ElasticModel, told_by_gaps: Dataset) -> None:
    rng = np.random.default_rng(0)
    moves = RequestTime(rng.normal(size=(BUCKETS, 2, 16)).astype(np.float32), Interval(0.1, 0.0, 0.2))
    histories = leave_one_out(told_by_gaps).test.histories
    plain, timed = exit_scorer(model)(histories), exit_scorer(model, "cpu", moves)(histories)
    assert np.abs(timed["depth 1"] - plain["depth 1"]).max() > 0.1
    unknown = exit_scorer(model, "cpu", moves)(replace(histories, asked=np.zeros(USERS, np.int64)))
    assert unknown["depth 1"].tobytes() == plain["depth 1"].tobytes()
