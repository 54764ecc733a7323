"""What happened between two scrapes of real metrics, and what cannot be scraped."""

import math
from pathlib import Path

import grpc
import numpy as np
import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from started import Started

from fathom.connection import Connection
from fathom.console.live import LiveMetrics, Point, Snapshot, between, check_url, quantile_ms
from fathom.errors import ConfigError, ConnectError
from fathom.runtime.query import Answer, Timing
from fathom.selector.choice import Choice, DepthReason
from fathom.serving.access.keys import new_key
from fathom.serving.config import ServerSettings
from fathom.serving.metrics import SECONDS, Metrics, Reading
from fathom.serving.server import Server

UNTIL_FIRST = Snapshot(0.0, 100.0, {}, {}, 0.0, 0.0)


def answer(depth: int, reason: DepthReason, total_us: int) -> Answer:
    timing = Timing(1, 2, 3, 4, total_us)
    return Answer(np.array([1]), np.array([0.5], np.float32), Choice(depth, reason, ""), 3, timing)


def scraped(*workers: Metrics, time_s: float) -> Snapshot:
    texts = [generate_latest(each.registry).decode() for each in workers]
    return Snapshot.parse(texts, time_s=time_s, unix_s=100.0 + time_s)


def test_rates_shares_and_errors_are_those_of_the_time_between_two_scrapes() -> None:
    one, other = Metrics(), Metrics()
    one.answered("films", answer(4, DepthReason.CERTIFIED, 900), 0)
    before = scraped(one, other, time_s=10.0)
    for _ in range(3):
        one.answered("films", answer(4, DepthReason.CERTIFIED, 900), 0)
    other.answered("films", answer(0, DepthReason.DEADLINE, 100), 0)
    other.failed(grpc.StatusCode.DEADLINE_EXCEEDED)
    other.show(lambda: [Reading("fathom_queue_depth", "", {"bundle": "films"}, 7.0)])
    point = between(before, scraped(one, other, time_s=12.0))
    assert point.requests == 2.5
    assert point.depths == {"0": 0.25, "4": 0.75}
    assert point.lowered == 0.25
    assert point.errors == {"DEADLINE_EXCEEDED": 0.5}
    assert (point.queued, point.unix_s) == (7.0, 112.0)
    assert point.p50_ms is not None
    assert 0.5 < point.p50_ms <= 1.0


def test_a_restarted_server_begins_anew_and_a_quiet_one_has_no_latency() -> None:
    long_running, fresh = Metrics(), Metrics()
    for _ in range(10):
        long_running.answered("films", answer(4, DepthReason.CERTIFIED, 900), 0)
    fresh.answered("films", answer(8, DepthReason.CERTIFIED, 900), 0)
    before, after = scraped(long_running, time_s=1.0), scraped(fresh, time_s=2.0)
    assert between(before, after).depths == {"8": 1.0}
    assert between(before, after).requests == 1.0
    quiet = between(after, scraped(fresh, time_s=3.0))
    assert quiet == Point(103.0, 0.0, None, None, 0.0, 0.0, None)


@given(times_us=st.lists(st.integers(1, 4_900_000), min_size=1, max_size=40), share=st.sampled_from((0.5, 0.9, 0.99)))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(times_us: list[int], share: float) -> None:
    metrics = Metrics()
    for each in times_us:
        metrics.answered("films", answer(4, DepthReason.CERTIFIED, each), 0)
    found = between(UNTIL_FIRST, scraped(metrics, time_s=1.0))
    quantile = quantile_ms(scraped(metrics, time_s=1.0).latency, share)
    assert (found.p50_ms, found.p99_ms) == (
        quantile_ms(scraped(metrics, time_s=1.0).latency, 0.5),
        quantile_ms(scraped(metrics, time_s=1.0).latency, 0.99),
    )
    assert quantile is not None
    true_s = sorted(times_us)[max(math.ceil(share * len(times_us)) - 1, 0)] / 1e6
    low, high = max((b for b in (0.0, *SECONDS) if b < true_s), default=0.0), min(b for b in SECONDS if b >= true_s)
    assert low * 1e3 - 1e-9 <= quantile <= high * 1e3 + 1e-9


@pytest.mark.parametrize(
    "url", ["", "metrics", "ftp://host/metrics", "http://", "http://host:0/", "http://a b/", "http://[/"]
)
def test_what_is_no_address_of_metrics_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="give an address, as http"):
        check_url(url)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        check_url("http://somebody:hidden@127.0.0.1:9464/metrics")
    assert "hidden" not in str(caught.value)


async def test_metrics_are_scraped_from_a_server(server: Started, console: Started) -> None:
    metrics = LiveMetrics([f"http://{server.told['metrics_address']}/metrics"])
    assert await metrics.points() == []
    # So soon after the first scrape there is no other.
    assert await metrics.points() == []
    assert console.ask("/api/live").status == 200


async def test_metrics_of_a_server_that_knows_its_callers_are_read_with_the_key_of_the_console(
    hostile_bundle: Path, tmp_path: Path
) -> None:
    authority, key = Authority(tmp_path), new_key()
    certificate, private = authority.issue("server")
    access = tmp_path / "access.yaml"
    access.write_text(f"keys:\n  - {{name: me, sha256: {key.sha256!r}, roles: [admin]}}\n")
    settings = ServerSettings(port=0, metrics_port=0, access=access, tls_cert=certificate, tls_key=private)
    async with Server(settings, hostile_bundle) as server:
        info = await server.start()
        url = f"https://{info.metrics_address}/metrics"
        known = Connection(info.address, authority.ca, metadata={"authorization": f"Bearer {key.text}"})
        assert await LiveMetrics([url], known).points() == []
        with pytest.raises(ConnectError, match="401"):
            await LiveMetrics([url], Connection(info.address, authority.ca)).points()
        with pytest.raises(ConnectError, match="no metrics"):
            await LiveMetrics([url]).points()


async def test_what_is_no_server_or_has_no_metrics_is_one_line(console: Started) -> None:
    with pytest.raises(ConnectError, match="no metrics: "):
        await LiveMetrics(["http://127.0.0.1:1/metrics"]).points()
    with pytest.raises(ConnectError, match="404"):
        await LiveMetrics([f"{console.told['url']}nowhere"]).points()
    with pytest.raises(ConnectError, match="the metrics cannot be read"):
        await LiveMetrics([console.told["url"]]).points()
