import json
from pathlib import Path

import pytest
from rich.console import Console

from fathom.loadtests.report import NOT_SENT, LatencyPercentiles, LoadReport, Sample, summarise


@pytest.fixture
def report() -> LoadReport:
    # Answers take 1..1000 ms; each is sent half a millisecond late; half of them by depth 4.
    samples = [
        Sample(
            i / 100,
            i / 100 + 0.0005,
            i / 100 + (i + 1) / 1000,
            "OK",
            4 if i % 2 else 16,
            "simple" if i % 2 else "complex",
        )
        for i in range(1000)
    ]
    samples += [Sample(9.0, 9.0, 9.1, "DEADLINE_EXCEEDED"), Sample(9.5, 9.5, 9.5, NOT_SENT)]
    return summarise(
        samples,
        target="127.0.0.1:1",
        bundle="tiny abc",
        transport="http2",
        trace={"seed": 0},
        deadline_ms=50,
        offered_s=10.0,
    )


def test_percentiles_are_nearest_rank_and_count_from_the_intended_moment(report: LoadReport) -> None:
    assert report.latency is not None
    figures = (report.latency.p50_ms, report.latency.p90_ms, report.latency.p99_ms, report.latency.p99_9_ms)
    assert figures == pytest.approx((500, 900, 990, 999))
    assert (report.latency.max_ms, report.latency.mean_ms) == pytest.approx((1000, 500.5))


def test_a_percentile_beyond_the_samples_is_the_largest() -> None:
    latency = LatencyPercentiles.of([3.0, 1.0, 2.0])
    assert latency is not None
    assert (latency.p50_ms, latency.p99_9_ms) == (2.0, 3.0)
    assert LatencyPercentiles.of([]) is None


def test_errors_are_counted_and_do_not_flatter(report: LoadReport) -> None:
    assert report.statuses == {"DEADLINE_EXCEEDED": 1, "NOT_SENT": 1, "OK": 1000}
    assert report.latency_all is not None
    assert report.latency_all.count == 1001
    assert report.depths == {4: 500, 16: 500}
    assert report.reasons == {"complex": 500, "simple": 500}
    assert report.latency_by_depth[4].count == 500


def test_rates_are_over_the_offered_time_and_until_the_last_answer(report: LoadReport) -> None:
    assert report.offered_per_s == pytest.approx(100.2)
    assert report.duration_s == pytest.approx(10.99)
    assert report.achieved_per_s == pytest.approx(1000 / 10.99)
    assert report.send_lag is not None
    assert report.send_lag.p50_ms == pytest.approx(0.5)


def test_it_is_written_as_json_and_png_and_shown_as_a_table(report: LoadReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["latency"]["p99_ms"] == pytest.approx(990)
    assert stored["depths"] == {"4": 500, "16": 500}
    assert "samples" not in stored
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=120, file=None, quiet=False)
    console.print(report.table())
    shown = console.export_text()
    assert "DEADLINE_EXCEEDED: 1 (0.1%)" in shown
    assert "tiny abc, transport http2" in " ".join(shown.split())


def test_a_replay_without_any_answer_is_still_a_report(tmp_path: Path) -> None:
    report = summarise(
        [Sample(0, 0, 1, "UNAVAILABLE")], target="t", bundle="b", transport="", trace={}, deadline_ms=1, offered_s=1.0
    )
    assert report.latency is None
    assert report.achieved_per_s == 0
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["latency"] is None
