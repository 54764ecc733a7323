"""The benchmark `capacity`, on a small bundle: it measures, predicts and compares."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.record import SCHEMA_VERSION
from fathom.benchmarks.systems import capacity
from fathom.tools.capacity import plan as planning
from fathom.tools.capacity import scheduling


def row(p99_ms: float, client_busy: float) -> dict[str, object]:
    figures = {"p50_ms": 2.0, "goodput_per_s": 100.0}
    predicted = {**figures, "p99_ms": 10.0, "p99_low_ms": 9.5, "p99_high_ms": 12.0}
    measured = {**figures, "p99_ms": p99_ms, "client_busy": client_busy}
    return {"arm": "policy", "load": 0.5, "per_s": 100.0, "predicted": predicted, "measured": measured}


def test_every_arm_is_predicted_and_measured_at_every_load(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "REQUESTS", 500)
    monkeypatch.setattr(scheduling, "LOOP_S", 0.05)
    monkeypatch.setattr(scheduling, "WAKES", 20)
    monkeypatch.setattr(capacity, "ROUTED", 50)
    result = capacity.compare(synthetic_bundle, 0.2, 1, 0.05)
    assert [(each["arm"], each["load"]) for each in result["turns"]] == [
        (arm, load) for arm in ("depth 4", "depth 16", "policy") for load in capacity.LOADS
    ]
    for each in result["turns"]:
        assert each["measured"]["p99_ms"] >= each["measured"]["p50_ms"] > 0
        assert each["predicted"]["p99_ms"] >= each["predicted"]["p50_ms"] > 0
    config = {"bundle": "b", "history": 20, "within_ms": 50.0, "turns": 1}
    shown = capacity.render({"config": config, "result": result})
    assert "| policy | 95% |" in shown
    (tmp_path / "capacity.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "result": result}))
    planned = capacity.plan_block(tmp_path)
    assert "requests/s (10,000,000 users, 20 requests a day" in planned
    assert "| depth | 20 items |" in planned


def test_a_turn_with_a_busy_client_does_not_count() -> None:
    (found,) = capacity.summary([row(11.0, 0.2), row(50.0, 0.9), row(9.0, 0.3)])
    assert found["turns"] == 2
    assert found["measured_p99_ms"] == 10.0
    assert found["within"]
    assert found["in_range"] == 1


def test_a_server_without_a_single_answer_in_time_is_compared_too() -> None:
    late = row(900.0, 0.2)
    late["measured"] = {**late["measured"], "goodput_per_s": 0.0}  # type: ignore[dict-item]
    (found,) = capacity.summary([late])
    assert found["goodput_per_s_ratio"] == 1000.0
    assert not found["within"]


def test_a_prediction_that_is_far_off_is_said_to_be() -> None:
    (found,) = capacity.summary([row(20.0, 0.2)])
    assert found["p99_ms_ratio"] == 0.5
    assert not found["within"]
