from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fathom.errors import ConfigError, DataError
from fathom.loadtests.traces import Arrival, Trace, UserHistory, bursty_times, make_trace, poisson_times, read_histories

HISTORIES = [UserHistory(tuple(str(i) for i in range(n)), tuple(range(100, 100 + n))) for n in (1, 3, 300)]


def dispersion(times: np.ndarray, duration_s: float) -> float:
    """Variance over mean of the counts per half second: 1 for a Poisson process, more for bursts."""
    counts = np.histogram(times, bins=int(duration_s * 2), range=(0, duration_s))[0]
    return float(counts.var() / counts.mean())


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    times = poisson_times(50, 400, np.random.default_rng(1))
    assert len(times) / 400 == pytest.approx(50, rel=0.03)
    assert np.all(np.diff(times) >= 0)
    assert times.max() < 400
    assert dispersion(times, 400) == pytest.approx(1, abs=0.15)


def test_bursty_arrivals_have_the_same_mean_rate_in_bursts() -> None:
    times = bursty_times(50, 2000, np.random.default_rng(1))
    assert len(times) / 2000 == pytest.approx(50, rel=0.05)
    assert np.all(np.diff(times) >= 0)
    assert dispersion(times, 2000) > 5


def test_equal_arguments_make_equal_traces_and_another_seed_another_one() -> None:
    def made(seed: int) -> Trace:
        return make_trace(HISTORIES, kind="bursty", rate_per_s=40, duration_s=5, seed=seed, profiles=("edge", "cloud"))

    assert made(7) == made(7)
    assert made(7) != made(8)


def test_requests_are_the_newest_items_of_a_moment_in_a_history() -> None:
    trace = make_trace(HISTORIES, rate_per_s=100, duration_s=5, longest=20, profiles=("edge", "cloud"))
    assert {each.profile for each in trace.arrivals} == {"edge", "cloud"}
    for each in trace.arrivals:
        assert 1 <= len(each.items) <= 20
        assert [int(item) + 100 for item in each.items] == list(each.timestamps)
        assert np.all(np.diff(each.timestamps) == 1)


def test_a_trace_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    trace = make_trace(HISTORIES, rate_per_s=20, duration_s=2, depth=8)
    trace.save(tmp_path / "trace.jsonl")
    assert Trace.load(tmp_path / "trace.jsonl") == trace


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: not a trace"),
        ("hello\n", ":1: not a trace"),
        ('{"schema_version": 9, "duration_s": 1}\n', ":1: a trace of schema_version 9"),
        ('{"schema_version": 1, "duration_s": 1}\n{"at_s": 0}\n', ":2: not a request of a trace: items"),
        ('{"schema_version": 1, "duration_s": 1}\n{"at_s": 0, "items": ["a"], "kk": 1}\n', ":2: .*kk"),
        ('{"schema_version": 1, "duration_s": 1}\n{"at_s": "x", "items": ["a"]}\n', ":2: .*at_s"),
        (
            '{"schema_version": 1, "duration_s": 1}\n{"at_s": 1, "items": ["a"]}\n{"at_s": 0.5, "items": ["a"]}\n',
            ":3: at_s falls",
        ),
    ],
)
def test_a_broken_trace_is_refused_with_the_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text)
    with pytest.raises(DataError, match=expected):
        Trace.load(tmp_path / "trace.jsonl")


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (1, 0), (-1, 1), (1e6, 1e6), (float("nan"), 1)])
def test_impossible_rates_are_refused(rate: float, duration: float) -> None:
    with pytest.raises(ConfigError, match="both must be positive"):
        make_trace(HISTORIES, rate_per_s=rate, duration_s=duration)


def test_histories_come_from_a_dataset_folder(tmp_path: Path) -> None:
    pl.DataFrame({"id": ["a", "b", "c"]}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame(
        {"user": [0, 0, 1], "item": [2, 0, 1], "timestamp": [5, 6, 7]},
        schema={"user": pl.UInt32, "item": pl.UInt32, "timestamp": pl.Int64},
    ).write_parquet(tmp_path / "interactions.parquet")
    assert read_histories(tmp_path) == [UserHistory(("c", "a"), (5, 6)), UserHistory(("b",), (7,))]
    assert len(read_histories(tmp_path, users=1)) == 1


def test_histories_come_from_a_trace(tmp_path: Path) -> None:
    Trace((Arrival(0.0, ("a", "b"), (1, 2)),), 1.0).save(tmp_path / "trace.jsonl")
    assert read_histories(tmp_path / "trace.jsonl") == [UserHistory(("a", "b"), (1, 2))]


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a trace nor a dataset"):
        read_histories(tmp_path)
