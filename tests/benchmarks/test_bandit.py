"""A bandit beside a certificate: settings whose agreement is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.experiments import bandit
from fathom.benchmarks.experiments.bandit import Settings, simulate


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Three settings: one that loses .2, one that loses .02, and the deepest depth; one costs a quarter, one a half."""
    monkeypatch.setattr(bandit, "CHECKED_AFTER", (1_000, 100_000))
    rng = np.random.default_rng(0)
    lost = [0.4 * (rng.random(2_000) < 0.5), 0.2 * (rng.random(2_000) < 0.1), np.zeros(2_000)]
    return Settings(1 - np.column_stack(lost), np.tile([1.0, 2.0, 4.0], (2_000, 1)))


def test_both_find_the_cheapest_setting_that_keeps_enough_and_a_certificate_is_faster(settings: Settings) -> None:
    found = {way: simulate(settings, 0.05, way, 10, 0) for way in ("certified", "bounded")}
    for rows in found.values():
        assert [row["wrong"] for row in rows] == [0, 0]
        assert rows[-1]["lost"] < 0.03
        # One in ten is answered at every depth, so no more than .45 can be saved.
        assert rows[0]["saved"] < rows[-1]["saved"] < 0.45
    assert found["certified"][-1]["saved"] > 0.4
    assert found["certified"][-1]["saved"] >= found["bounded"][-1]["saved"]


def test_without_a_bound_eps_holds_on_average_alone(settings: Settings) -> None:
    *_, last = simulate(settings, 0.1, "priced", 10, 0)
    # It mixes settings of which one loses far too much.
    assert last["lost"] == pytest.approx(0.1, abs=0.02)
    assert last["wrong"] > 0
    assert last["saved"] > 0.45


def test_a_run_is_told_as_it_is_stored(tmp_path: Path) -> None:
    row = {"eps": 0.05, "way": "bounded", "requests": 5_000, "saved": 0.123, "lost": 0.02, "wrong": 0.0}
    (tmp_path / "bandit").mkdir()
    run = {"config": {"dataset": "ml-100k"}, "seed": 0, "result": {"rows": [row]}}
    (tmp_path / "bandit" / "ml-100k-seed-0.json").write_text(json.dumps(run))
    assert "| MovieLens-100K, seed 0 | 5% | 5,000 | bounded | 12.3% | 2.0% | 0.0% |" in bandit.section(tmp_path)
    assert bandit.section(tmp_path / "nothing") == ""
