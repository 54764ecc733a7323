from pathlib import Path

from fathom.benchmarks.record import save_run
from fathom.benchmarks.systems.client import BENCHMARK, SEED, WAYS, compare


def test_every_way_to_send_a_request_is_measured_and_shown(synthetic_bundle: Path, tmp_path: Path) -> None:
    rows = compare(synthetic_bundle, count=10, rounds=1)
    assert [row["way"] for row in rows] == list(WAYS)
    for row in rows:
        assert row["requests_per_s"] > 0
        assert row["cpu_us_range"][0] <= row["cpu_us"] <= row["cpu_us_range"][1]
    config = {"rounds": 1, "requests": 10}
    save_run("client", config=config, result={"rows": rows}, seed=SEED, folder=tmp_path)
    shown = BENCHMARK.section(tmp_path)
    assert all(f"| {name} |" in shown for name in WAYS)
