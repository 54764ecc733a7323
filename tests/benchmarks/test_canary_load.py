from pathlib import Path

from fathom.benchmarks.record import save_run
from fathom.benchmarks.systems.canary import BENCHMARK, KINDS, SEED, compare


def test_worse_canaries_are_rolled_back_and_no_request_fails(synthetic_bundle: Path, tmp_path: Path) -> None:
    rows = compare(synthetic_bundle, seconds=2.0)
    assert [row["canary"] for row in rows] == list(KINDS)
    assert sum(row["failed"] for row in rows) == 0
    twin, missing, *_ = rows
    assert not twin["rolled_back"]
    assert missing["rolled_back"]
    assert missing["canary_answers"] == 0
    config = {"bundle": "synthetic", "rate": 100, "share": 0.2, "seconds": 3.0}
    save_run("canary", config=config, result={"rows": rows}, seed=SEED, folder=tmp_path)
    assert "rolled back after" in BENCHMARK.section(tmp_path)
