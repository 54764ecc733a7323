from pathlib import Path

from fathom.benchmarks.systems.grpc_echo import compare


def test_both_servers_take_turns_and_every_figure_is_there(synthetic_bundle: Path) -> None:
    result = compare(synthetic_bundle, seconds=0.1, repetitions=2)
    assert result["ratio_requests_per_s"] > 0
    assert result["ratio_range"][0] <= result["ratio_requests_per_s"] <= result["ratio_range"][1]
    for concurrency in ("32", "1"):
        assert len(result["turns"][concurrency]) == 2
        for figures in result[f"concurrency_{concurrency}"].values():
            assert figures["requests_per_s"] > 0
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert result["server_timings_alone"]["engine_us"] > 0
    assert result["request_bytes"] > 300
