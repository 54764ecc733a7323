"""The benchmark of what is saved measures real servers, and its section says what is stored."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.systems import routing_server, saving


def test_families_are_certified_served_and_told(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nearly everything may be lost, or nothing: so all are certified, then none.
    monkeypatch.setattr(saving, "PROMISES", (("quality", 0.9), ("agreement", 1e-6)))
    monkeypatch.setattr(saving, "DELTA", 0.2)
    monkeypatch.setattr(routing_server, "REQUESTS", 20)
    network = f"ml-100k={tiny_build / 'bundle'}:{tiny_build / 'dataset'}"
    main(["run", "saving", network, "--seed", "3", "--rounds", "2", "--results", str(tmp_path)])
    run = json.loads((tmp_path / "saving" / "ml-100k-seed-3.json").read_bytes())
    rows = run["result"]["rows"]
    assert [(each["kind"], each["family"]) for each in rows] == [
        (kind, family) for kind in ("quality", "agreement") for family in saving.FAMILIES
    ]
    assert all((each["routing"] is None) == (each["cpu"] is None) for each in rows)
    assert rows[0]["cpu"]["low"] <= rows[0]["cpu"]["value"] <= rows[0]["cpu"]["high"]
    page = saving.BENCHMARK.section(tmp_path)
    assert "| MovieLens-100K, seed 3 | 10% of NDCG@10 |" in page
    assert page.count("nothing certified") >= 2
    assert saving.BENCHMARK.section(tmp_path / "nothing") == ""


def test_what_is_not_surely_saved_is_nothing(tmp_path: Path) -> None:
    cpu = {"value": 0.26, "low": 0.24, "high": 0.27}
    row = {"kind": "agreement", "eps": 0.1}
    rows = [row | {"family": "mixture", "cpu": cpu | {"low": -0.1}}, row | {"family": "learned", "cpu": cpu}]
    (tmp_path / "saving").mkdir()
    run = {"config": {"dataset": "retail"}, "seed": 0, "result": {"rows": rows}}
    (tmp_path / "saving" / "retail-seed-0.json").write_text(json.dumps(run))
    (said,) = saving.fact(tmp_path)
    assert said.endswith("by a learned choice and by mixing at random: Online Retail II 26% and nothing")
    assert saving.fact(tmp_path / "nothing") == []
