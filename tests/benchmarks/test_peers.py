"""Small twins of the measurements beside other servers: real servers, few requests."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fathom.benchmarks import http1_load
from fathom.benchmarks.record import save_run
from fathom.benchmarks.systems import peers
from fathom.errors import ConnectError

CASES = [[f"item-{number}" for number in range(length)] for length in (5, 10)]


class Server(ThreadingHTTPServer):
    """One that many may connect to at once."""

    request_queue_size = 128


class Echo(BaseHTTPRequestHandler):
    """Answers a message with itself, and "no" with an error."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if body == b"no" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """A server over HTTP/1.1."""
    with Server(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_closed_loop_over_http_1_counts_what_was_answered(address: str) -> None:
    report = http1_load.closed(address, [b"a" * 1_000, b"no"], 3, seconds=0.2)
    counts = report.counts()
    assert counts.keys() == {"OK", "UNAVAILABLE"}
    assert abs(counts["OK"] - counts["UNAVAILABLE"]) <= 1
    assert (report.ended_s >= report.sent_s).all()


def test_an_open_loop_over_http_1_sends_at_its_rate(address: str) -> None:
    report = http1_load.open(address, [b"a"], 200, seconds=0.5, deadline_ms=1_000)
    assert len(report.due_s) == pytest.approx(100, abs=40)
    assert report.counts() == {"OK": len(report.due_s)}


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConnectError, match="is the server running"):
        http1_load.closed("127.0.0.1:1", [b"a"], 1, seconds=0.1)


def test_all_peers_take_turns_and_a_page_can_be_made_of_it(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FACTORS": (0.5,), "LOADS": 3, "DEPTHS": (4,), "MOST_PER_S": 20_000}.items():
        monkeypatch.setattr(peers, name, value)
    result = peers.compare(synthetic_bundle, CASES, 0.1, 1)
    assert {peers.BY_HAND, peers.FATHOM} <= result["depth_4"].keys()
    for side in result["depth_4"].values():
        assert side["busy"]["requests_per_s"] > 0
        assert side["busy"]["cpu_us"] > 0
        assert 0 <= side["loads"][0]["in_time"] <= 1
    config = {"bundle": "b", "mean_history": 7.5, "in_flight": 32, "within_ms": 25, "turns": 1}
    save_run("peers", config=config | {"left_out": peers.left_out()}, result=result, folder=tmp_path)
    assert "| by hand |" in peers.BENCHMARK.section(tmp_path)
