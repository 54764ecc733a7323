"""A small twin of the measurement of what one client's largest messages do to another: a real server, short turns."""

from argparse import Namespace
from pathlib import Path

import pytest

from fathom.benchmarks import record
from fathom.benchmarks.server import catalogue_ids
from fathom.benchmarks.systems import batch_bomb


def test_the_victim_is_measured_beside_every_kind_and_a_page_can_be_made_of_it(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = batch_bomb.bombs(catalogue_ids(synthetic_bundle))
    assert max(len(bomb.message) for bomb in kinds.values()) <= batch_bomb.LARGEST_MESSAGE
    refused = next(name for name in kinds if name.startswith("as in an older"))
    monkeypatch.setattr(batch_bomb, "bombs", lambda _: {name: kinds[name] for name in ("nothing", refused)})
    (run,) = batch_bomb.measure(Namespace(bundle=synthetic_bundle, seconds=0.2, turns=1))
    nothing, bombed = run.result["kinds"]
    assert nothing["bombs"] == {}
    assert list(bombed["bombs"]) == ["INVALID_ARGUMENT"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] <= row["worst_ms"] for row in (nothing, bombed))
    record.save_run("batch_bomb", config=run.config, result=run.result, folder=tmp_path)
    assert f"| {refused} |" in batch_bomb.BENCHMARK.section(tmp_path)
