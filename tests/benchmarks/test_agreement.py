"""The benchmark of agreement measures a real bundle, and its section says what is stored."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks import registry
from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments import agreement
from fathom.benchmarks.experiments.agreement import saved
from fathom.exporter.certification.routing_curves import Curve


@pytest.fixture(scope="module")
def stored(tiny_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    network = f"ml-100k={tiny_build / 'bundle'}:{tiny_build / 'dataset'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "RESAMPLES", 20)
        main(["run", "agreement", network, "--seed", "3", "--results", str(folder)])
    return folder


def test_a_networks_figures_are_stored_and_told(stored: Path) -> None:
    run = json.loads((stored / "agreement" / "ml-100k-seed-3.json").read_bytes())
    assert (run["seed"], run["config"]["dataset"]) == (3, "ml-100k")
    result = run["result"]
    assert [each["name"] for each in result["policies"]] == list(agreement.NAMES)
    assert all(each["low"] <= each["high"] for each in result["policies"])
    for known in ("request", "answer"):
        assert list(result["enough"][known]) == ["ridge", "tables", "net", "boosted"]
        assert all(0 <= value <= 1 for value in result["enough"][known].values())
    assert list(result["beyond_length"]) == ["learned", "cascade", "boosted"]
    static = result["static"]
    assert static[-1]["agreement"] == static[-1]["overlap"] == 1.0
    assert [each["level"] for each in result["saved"]] == [0.9, 0.95]
    page = agreement.BENCHMARK.section(stored)
    assert "## Agreement with the deepest depth" in page
    assert page.count("| MovieLens-100K, seed 3 |") == 4
    (told,) = agreement.fact(stored)
    assert "with 95% of depth 16's top 10 kept" in told
    assert agreement.fact(stored / "nothing") == []


def test_what_is_saved_is_measured_at_equal_agreement() -> None:
    value = np.tile([0.8, 1.0], (50, 1))
    cost = np.tile([1.0, 4.0], (50, 1))
    static = Curve("static", value, cost, np.eye(2))
    better = Curve("learned", np.tile([0.9], (50, 1)), np.tile([1.0], (50, 1)), np.ones((1, 2)))
    found = saved(0.9, static, {"learned": better})
    # Half at each depth costs 2.5 of 4; the policy needs 1.
    assert found["mixture"]["value"] == pytest.approx(0.375)
    assert found["learned"]["value"] == pytest.approx(0.75)
    assert found["ratio"]["learned"]["low"] == pytest.approx(2.0)
    # Between its one setting and the deepest depth it may mix too.
    assert saved(0.95, static, {"learned": better})["learned"]["value"] == pytest.approx(0.375)


@pytest.mark.parametrize("text", ["ml-100k", "ml-100k=bundle", "=bundle:data", "ml-100k=:data"])
def test_what_names_no_network_is_refused_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "agreement", text, "--results", str(tmp_path)])
    assert end.value.code == 2
    assert "is not NAME=BUNDLE:DATASET" in capsys.readouterr().err.splitlines()[-1]


def test_it_is_registered_beside_its_siblings() -> None:
    assert registry.load("agreement") is agreement.BENCHMARK
