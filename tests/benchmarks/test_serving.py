"""Small twins of the measurements of a server under stress: real servers, few requests."""

import asyncio
from pathlib import Path

import pytest

from fathom.benchmarks.load import made_up
from fathom.benchmarks.record import save_run
from fathom.benchmarks.server import started
from fathom.benchmarks.systems import drain, overload, workers

IDS = [f"item-{number}" for number in range(10)]


def test_more_than_a_server_can_bear_is_offered_at_its_rate_and_all_of_it_ends(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "FACTORS", (0.5, 2.0))
    costs, rows = overload.turn_of(synthetic_bundle, (), [IDS, IDS[:5]], (4, 16), 0.2, 0)
    assert costs.capacity_per_s > 0
    for row, factor in zip(rows, overload.FACTORS, strict=True):
        assert row["offered_per_s"] == pytest.approx(factor * costs.capacity_per_s, rel=0.5)
        assert sum(row["statuses"].values()) == row["requests"]
        assert row["statuses"].keys() <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert set(rows[0]["depths"]) <= {"0", "4", "8", "12", "16"}
    arm = overload.arm_of([(costs, rows)] * 2, dict.fromkeys((0, 4, 8, 12, 16), 0.1), 0.2)
    config = {"bundle": "b", "width": 8, "mean_history": 7.5, "deadline_ms": 50, "turns": 2, "connections": 4}
    save_run("overload", config=config, result={"arms": {"core": arm}}, folder=tmp_path)
    assert "| 2 x |" in overload.BENCHMARK.section(tmp_path)


def test_a_core_that_refuses_can_answer_less() -> None:
    costs = overload.Costs(capacity_per_s=100, answer_us=500, refusal_us=100)
    assert costs.possible_per_s(1_000) == 1_000
    assert costs.possible_per_s(2_000) == 2_000
    assert costs.possible_per_s(6_000) == 1_000
    assert costs.possible_per_s(20_000) == 0


def test_a_killed_worker_is_counted_and_replaced(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client beside other tests hears late of a connection that ended.
    monkeypatch.setattr(workers, "NOTICED_S", 5.0)
    log, requests = tmp_path / "log", made_up(IDS, 4, 100, "workers")
    with started(synthetic_bundle, "--workers", "2", log=log) as server:
        result = asyncio.run(workers.kills_of(server.pid, log, server.address, requests, repetitions=1))
    assert result["kills"] == 1
    assert result["statuses"]["OK"] > 0
    assert result["failed_otherwise"] == 0
    assert result["failed_in_flight"] <= result["in_flight_at_kills"]
    assert 0 < result["back_s"]["median"] <= result["back_s"]["most"]


def test_drains_are_counted(synthetic_bundle: Path) -> None:
    result = drain.drains_of(synthetic_bundle, 1, drains=1)
    result["statuses"].pop("RESOURCE_EXHAUSTED", 0)
    assert set(result["statuses"]) == {"OK", "UNAVAILABLE"}
    assert result["statuses"]["UNAVAILABLE"] == drain.CALLERS
    assert result["cut_off"] == 0
    run = {"config": {"callers": drain.CALLERS}, "result": {"drains": [result]}}
    assert f"| 1 | 1 | {result['statuses']['OK']:,} | 64 | 0 | 0 | 0 |" in drain.render(run)
