"""The sections about routing say what the stored runs hold, whatever was measured."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks import certificate
from fathom.benchmarks.quality.plots import svg
from fathom.benchmarks.routing_tables import areas_figure, load_routed, routing_sections


def policy(name: str, area: float) -> dict[str, object]:
    return {
        "name": name,
        "points": [[1.0, 0.1]],
        "shares": [[1.0]],
        "area": area,
        "low": area - 1e-4,
        "high": area + 1e-4,
    }


def stored(folder: Path, dataset: str, area: float) -> None:
    names = ("length", "rule", "learned", "cascade", "hindsight", "boosted")
    report = {
        "static": [[1.0, 0.10], [4.0, 0.12]],
        "explained": -0.0004,
        "policies": [policy(name, area) for name in names],
    }
    needs = {"shallow": 4, "deep": 16, "share": 0.14, "auc_complexity": 0.48, "auc_learned": 0.54}
    needs |= {"accuracy_threshold": 0.5, "accuracy_best_threshold": 0.86, "accuracy_constant": 0.86}
    claim = {"eps": 0.05, "policy": "mixture", "users": 6040, "routing": "85 % depth 4, 15 % depth 8"}
    claims = [
        claim | {"kept": 0.972, "saved": 0.75, "needed": None},
        claim | {"eps": 0.01, "routing": None, "kept": None, "saved": None, "needed": 20_000},
    ]
    result = {"report": report, "needs_more": {"cloud": needs}, "claims": claims}
    run = {"config": {"dataset": dataset}, "seed": 0, "result": result}
    (folder / "routing").mkdir(exist_ok=True)
    (folder / "routing" / f"{dataset}-seed-0.json").write_text(json.dumps(run))


def test_nothing_measured_gives_nothing(tmp_path: Path) -> None:
    assert routing_sections(tmp_path) == []


def test_routing_is_said_to_win_only_where_it_is_shown(tmp_path: Path) -> None:
    stored(tmp_path, "ml-1m", -0.0005)
    page = "\n".join(routing_sections(tmp_path))
    assert "No servable policy is shown to lie above the hull" in page
    assert "| MovieLens-1M, seed 0 | 5% | mixture | 6,040 | 85 % depth 4, 15 % depth 8 | 97.2% | 75.0% |" in page
    assert "not certified: about 20,000 users needed" in page
    stored(tmp_path, "ml-100k", 0.001)
    page = "\n".join(routing_sections(tmp_path))
    assert "Shown above the hull by some servable policy: MovieLens-100K, seed 0." in page
    assert svg(areas_figure(load_routed(tmp_path))).startswith(b"<?xml")


def test_the_certificates_word_is_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "USERS", (2_000,))
    rows = certificate.measure(replications=50, seed=0)
    assert all(row["wrong"] <= 0.14 for row in rows)
    assert rows[0]["power"] > rows[0]["wrong"]
    run = {"config": {"replications": 50, "delta": 0.05}, "result": {"rows": rows}}
    (tmp_path / "certificate.json").write_text(json.dumps(run))
    assert "### Does the certificate keep its word?" in routing_sections(tmp_path)[0]
