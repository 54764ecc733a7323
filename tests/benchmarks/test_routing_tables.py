"""The sections about routing say what the stored runs hold, whatever was measured."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.experiments import certificate, routing
from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.routing import areas_figure, load_routed, section
from fathom.benchmarks.systems import feedback, routing_server


def policy(name: str, area: float) -> dict[str, object]:
    return {
        "name": name,
        "points": [[1.0, 0.1]],
        "shares": [[1.0]],
        "area": area,
        "low": area - 1e-4,
        "high": area + 1e-4,
    }


def stored(folder: Path, dataset: str, area: float, *, seed: int = 0, saved: float | None = 0.75) -> None:
    names = ("length", "learned", "hindsight", "boosted")
    report = {
        "static": [[1.0, 0.10], [4.0, 0.12]],
        "policies": [policy(name, area) for name in names],
    }
    claim = {"eps": 0.05, "policy": "mixture", "users": 6040, "routing": "85 % depth 4, 15 % depth 8"}
    found = {"kept": 0.972, "saved": saved} if saved else {"routing": None, "kept": None, "saved": None}
    claims = [
        claim | found | {"needed": None},
        claim | {"eps": 0.01, "routing": None, "kept": None, "saved": None, "needed": 20_000},
    ]
    result = {"report": report, "claims": claims}
    run = {"config": {"dataset": dataset}, "seed": seed, "result": result}
    (folder / "routing").mkdir(exist_ok=True)
    (folder / "routing" / f"{dataset}-seed-{seed}.json").write_text(json.dumps(run))


def test_nothing_measured_gives_nothing(tmp_path: Path) -> None:
    for benchmark in (routing.BENCHMARK, certificate.BENCHMARK, routing_server.BENCHMARK, feedback.BENCHMARK):
        assert benchmark.section(tmp_path) == ""


def test_routing_is_said_to_win_only_where_it_is_shown(tmp_path: Path) -> None:
    stored(tmp_path, "ml-1m", -0.0005)
    page = section(tmp_path)
    assert "Of 2 servable policies, those above the hull with their whole interval: 0; by chance alone 0.1" in page
    assert "| MovieLens-1M, seed 0 | 5% | mixture | 6,040 | 85 % depth 4, 15 % depth 8 | 97.2% | 75.0% |" in page
    assert "not certified: about 20,000 users needed" in page
    stored(tmp_path, "ml-100k", 0.001)
    page = section(tmp_path)
    assert "with their whole interval: 2: length alone (MovieLens-100K, seed 0), learned" in page
    assert svg(areas_figure(load_routed(tmp_path))).startswith(b"<?xml")


def test_several_seeds_are_told_by_their_spread(tmp_path: Path) -> None:
    for seed, saved in enumerate((0.15, None, 0.77)):
        stored(tmp_path, "ml-100k", 0.0, seed=seed, saved=saved)
    page = section(tmp_path)
    assert "| MovieLens-100K | 5% | mixture | 2 of 3 | 15.0% [0.0%, 77.0%] | 97.2% [97.2%, 97.2%] |" in page
    assert "| MovieLens-100K | 1% | mixture | 0 of 3 | 0.0% [0.0%, 0.0%] |  |" in page


def test_the_certificates_word_is_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "USERS", (6_000,))
    coverage, power = certificate.coverage(replications=30, seed=0), certificate.power(replications=10, seed=0)
    # At 5 %, eight and more of 30 replications have a probability below 1 in 1,000.
    assert all(row["wrong"] < 0.25 for row in coverage)
    nothing_lost, _, dip, _, agreement = power
    assert nothing_lost["several"] > 0.4
    assert dip["several"] > 0.4 > dip["one"]
    assert agreement["several"] == 1
    config = {"replications": 30, "delta": 0.05, "depths": [4, 8, 16]}
    run = {"schema_version": 1, "config": config, "result": {"coverage": coverage, "power": power}}
    (tmp_path / "certificate.json").write_text(json.dumps(run))
    assert "### Does the certificate keep its word?" in certificate.BENCHMARK.section(tmp_path)


def test_servers_and_feedback_are_told_as_stored(tmp_path: Path) -> None:
    row = {"concurrency": 1, "cpu_ms": {"deepest": 8.0, "certified": 3.0}, "ndcg": {"deepest": 0.2, "certified": 0.19}}
    arm = {"in_time": 0.97, "answered": 1.0, "ndcg_in_time": None, "ndcg_of_all": 0.1, "depths": {"4": 0.75, "8": 0.25}}
    load = {"capacity_per_s": 100.0, "offered_per_s": 200.0, "arms": {"certified, deadline": arm}}
    result = {"compute": [{**row, "saved": {"certified": {"value": 0.6, "low": 0.55, "high": 0.65}}}], "load": load}
    (tmp_path / "routing_server").mkdir()
    for eps in (0.01, 0.05):
        config = {"bundle": "ml-1m", "eps": eps, "routing": "all at depth 4", "deadline_ms": 50.0}
        stored_run = json.dumps({"schema_version": 1, "config": config, "result": result})
        (tmp_path / "routing_server" / f"ml-1m-eps-{eps:g}.json").write_text(stored_run)
    stream = {"mean_agreement": 0.73, "alarms": 0, "replications": 100, "median_values_until_alarm": None}
    drift = stream | {"mean_agreement": 0.61, "alarms": 100, "median_values_until_alarm": 26.0}
    config = {"bundle": "ml-1m", "routing": "all at depth 4", "values": 10_000, "alpha": 0.01}
    run = {"schema_version": 1, "config": config, "result": {"expected": 0.7, "no drift": stream, "drift": drift}}
    (tmp_path / "feedback.json").write_text(json.dumps(run))
    server, told = routing_server.BENCHMARK.section(tmp_path), feedback.BENCHMARK.section(tmp_path)
    assert server.index("eps 5%") < server.index("eps 1%")
    assert "| 1 | 8.00 | 3.00 | 60.0% [55.0%, 65.0%] | .2000 | .1900 |" in server
    assert "| certified, deadline | 97.0% | 100.0% | .0000 | .1000 | 4: 75%, 8: 25% |" in server
    assert "| drift | 0.610 | 100 of 100 | 26 |" in told
