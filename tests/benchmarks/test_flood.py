"""A small twin of the measurement of fairness: a real server, a victim, and a flood from a process of its own."""

from pathlib import Path

import pytest

from fathom.benchmarks.record import save_run
from fathom.benchmarks.server import started
from fathom.benchmarks.systems import fairness

IDS = [f"item-{number}" for number in range(10)]


def test_a_victim_is_timed_alone_and_beside_each_kind_of_flood(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "BEFORE_S", 0.1)
    monkeypatch.setattr(fairness, "AFTER_S", 0.1)
    short, long = fairness.Requests(IDS, 5, 4, 0), fairness.Requests(IDS, 10, 16, 1)
    with started(synthetic_bundle) as server:
        turns = {
            name: [fairness.arm_of(server, short, long, fairness.ARMS[name], 0.3)]
            for name in ("nobody", "a new name for each call")
        }
    result = fairness.summarise(turns)
    alone, beside = result["rows"]
    assert alone["answers"] > 0
    assert beside["answers"] > 0
    assert beside["flood_ends"]["OK"] > 0
    assert beside["allowed_ms"] > 3 * alone["victim_p99_ms"]
    config = {"bundle": "b", "width": 8, "outstanding": 300, "load_s": 0.3, "turns": 1}
    config |= {"short": {"items": 5, "depth": 4}, "long": {"items": 10, "depth": 16}}
    save_run("fairness", config=config, result=result, folder=tmp_path)
    assert "| a new name for each call |" in fairness.BENCHMARK.section(tmp_path)
