from pathlib import Path

import pytest

from fathom.benchmarks.record import save_run
from fathom.benchmarks.systems import security
from fathom.benchmarks.systems.security import BENCHMARK, PLAIN, SEED, compare


def test_what_each_way_to_know_a_caller_costs_is_measured_and_shown(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "LOADS", {1: 5, 8: 20})
    monkeypatch.setattr(security, "WARM_UP", 2)
    rows = compare(synthetic_bundle, rounds=1)
    assert [row["in_flight"] for row in rows] == [1] * 6 + [8] * 6
    assert {row["arm"] for row in rows} >= {PLAIN, "API key", "mutual TLS and API key"}
    for row in rows:
        assert row["cpu_us"] > 0
        assert row["p50_ms"] > 0
        assert row["arm"] != PLAIN or row["cpu_us_more"] == 0
    save_run("security", config={"rounds": 1}, result={"rows": rows}, seed=SEED, folder=tmp_path)
    shown = BENCHMARK.section(tmp_path)
    assert "What TLS and keys cost" in shown
    assert shown.count("| API key |") == 2
