"""The comparison with other servers: a small twin with real ones, and what its figures are read from."""

import shutil
import socket
import struct
import sys
import threading
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fathom.benchmarks import http1_load, infer
from fathom.benchmarks.http2_load import Report
from fathom.benchmarks.record import save_run
from fathom.benchmarks.server import StartedServer
from fathom.benchmarks.systems import peers
from fathom.benchmarks.systems.peers import loads
from fathom.benchmarks.systems.peers.adapters import ADAPTERS, Adapter, chosen, slug
from fathom.benchmarks.systems.peers.arms import Arms
from fathom.benchmarks.systems.peers.environments import Requirements, environment
from fathom.benchmarks.systems.peers.losses import losses, where_fathom_loses
from fathom.benchmarks.systems.peers.protocols import GRPC, Answer, http1
from fathom.benchmarks.systems.peers.stored import Measured
from fathom.benchmarks.systems.peers.turns import Study
from fathom.benchmarks.systems.routing_server import ServedCase
from fathom.errors import ConfigError, ConnectError, FathomError, UnavailableError
from fathom.protos.fathom.v1 import recommender_pb2 as pb


class Server(ThreadingHTTPServer):
    """One that many may connect to at once."""

    request_queue_size = 128


class Echo(BaseHTTPRequestHandler):
    """Answers a message with itself, "no" with an error, and "end" by ending the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"end":
            self.close_connection = True
            return
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


def test_answers_over_http_1_are_kept_each_with_its_call_and_a_lost_connection_is_an_unanswered_call(
    address: str,
) -> None:
    messages = [b"one", b"end", b"three", b"no"]
    report = http1_load.closed(address, messages, 2, seconds=0.2, keep=True)
    assert len(report.answers) > len(messages)
    for number, (answer, status) in enumerate(zip(report.answers, report.statuses.tolist(), strict=True)):
        sent = messages[number % len(messages)]
        assert (status, answer) == ((0, sent) if sent in (b"one", b"three") else (14, b""))


def test_a_server_that_resets_connections_leaves_calls_unanswered_and_says_so_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=_reset_each, args=(listening, over := threading.Event()))
        thread.start()
        report = http1_load.closed(f"127.0.0.1:{port}", [b"a"], 2, seconds=0.1)
        with pytest.raises(UnavailableError, match="a request was not answered: "):
            http1("/a").ask(StartedServer(f"127.0.0.1:{port}", 0, 0.0), [b"a"])
        over.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()
    assert report.counts() == {"UNAVAILABLE": len(report.due_s)}


def _reset_each(listening: socket.socket, over: threading.Event) -> None:
    """Ends each connection by a reset once it was asked something, as a process that is killed does."""
    while not over.is_set():
        connection, _ = listening.accept()
        connection.recv(1 << 16)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_an_open_loop_over_http_1_sends_at_its_rate(address: str) -> None:
    report = http1_load.open(address, [b"a"], 200, seconds=0.5, deadline_ms=1_000)
    assert len(report.due_s) == pytest.approx(100, abs=40)
    assert report.counts() == {"OK": len(report.due_s)}


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConnectError, match="is the server running"):
        http1_load.closed("127.0.0.1:1", [b"a"], 1, seconds=0.1)


def test_fathom_and_a_peer_take_turns_and_a_page_can_be_made_of_it(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FACTORS": (0.5,), "SWEEP": (0.5,), "OTHER_FACTORS": (1.0,)}.items():
        monkeypatch.setattr(loads, name, value)
    options = Namespace(
        bundle=synthetic_bundle, data=None, peers="by-hand", arms="depth-4,rules,random", seconds=0.1, turns=1, name=""
    )
    (run,) = peers.BENCHMARK.measure(options)
    (turn,) = run.result["turns"]
    assert list(turn) == ["fathom", "by hand"]
    assert list(turn["fathom"]["rows"]) == ["rules", "depth-4"]
    assert run.config["left_out"] == ["random: there is no mix of depths without the arm certified"]
    for side in turn.values():
        assert side["memory_mb"] > 10
        assert side["start_s"] > 0
        for depth in ("4", "16"):
            assert side["closed"][depth]["busy"]["requests_per_s"] > 0
            assert side["closed"][depth]["busy"]["cpu_us"] > 0
    row = next(row for row in turn["by hand"]["rows"]["depth-4"] if row["deadline_ms"] == loads.WITHIN_MS)
    assert 0 <= row["within"]["25"] <= row["offered_per_s"]
    assert "ndcg" not in row
    save_run("peers", config=run.config, result=run.result, folder=tmp_path)
    page = peers.BENCHMARK.section(tmp_path)
    assert "**Where Fathom loses" in page
    assert "| by hand, depth 16 |" in page
    assert "Quality-goodput" not in page


def test_arms_that_a_bundle_cannot_have_are_left_out_and_unknown_ones_are_an_error(synthetic_bundle: Path) -> None:
    with Arms(synthetic_bundle, (4, 8), "depth-8,certified,agreement,deadline-without-depth-0") as arms:
        arms.prepare(None)
        assert [(arm.name, arm.depth) for arm in arms.all] == [("depth-8", 8), ("deadline-without-depth-0", None)]
        assert arms.left_out == ["certified: nothing is certified", "agreement: nothing is certified"]
    with pytest.raises(ConfigError, match="no arm is called nothing; there are depth-4, certified"):
        Arms(synthetic_bundle, (4,), "nothing")


def test_a_peer_that_does_not_start_is_left_out_and_one_with_other_items_is_an_error(synthetic_bundle: Path) -> None:
    @contextmanager
    def broken(*_: object) -> Iterator[StartedServer]:
        raise UnavailableError("it did not start")
        yield

    cases = [ServedCase(["item-1", "item-2"], "")]
    study = Study(synthetic_bundle, cases, False, 0.1, expected={4: [["other"]], 16: [["other"]]})
    assert peers.ready(study, [Adapter("broken", GRPC, broken)], []) == ([], ["broken (it did not start)"])
    with pytest.raises(FathomError, match="by hand: at depth 4 it answers other items than Fathom"):
        peers.ready(study, chosen("by-hand"), [])


def test_peers_are_chosen_by_name() -> None:
    assert [each.name for each in chosen("triton-by-hand,mosec")] == ["Triton by hand", "mosec"]
    assert chosen("") == []
    assert len({slug(each.name) for each in chosen("all")}) == len(ADAPTERS)
    with pytest.raises(ConfigError, match="no peer is called nothing; there are by-hand, mosec"):
        chosen("nothing")


CASES = [ServedCase(["a", "b"], "x"), ServedCase(["c"], "y")]


def report_of(took_ms: list[float], statuses: list[int], answers: list[bytes], cpu_s: float = 0.1) -> Report:
    due = np.arange(len(took_ms)) / 10
    ended = due + np.array(took_ms) / 1e3
    return Report(1.0, due, due, ended, np.array(statuses, np.int16), answers, cpu_s)


def answer(*items: str, depth: int = 4) -> bytes:
    return pb.RecommendResponse(items=[pb.Item(id=item) for item in items], depth=depth).SerializeToString()


def test_quality_goodput_counts_every_request_and_only_answers_in_time() -> None:
    offered = loads.Offered(CASES, [b"", b""])
    answers = [answer("x", "z"), answer("z", "y", depth=8), answer("x"), b"", answer("z")]
    report = report_of([3, 24, 26, 5, 1], [0, 0, 0, 8, 0], answers)
    row = loads.row_of(report, http1("/a"), offered, loads.WITHIN_MS, quality=True)
    gains = 1 + 1 / np.log2(3) + 0
    assert row["ndcg"] == pytest.approx(gains / 5, abs=1e-6)
    assert row["ndcg_in_time"] == pytest.approx(gains / 3, abs=1e-6)
    assert row["within"] == {"10": 2.0, "25": 3.0, "50": 4.0}
    assert row["depths"] == {"4": 2, "8": 1}
    told = loads.row_of(report, GRPC, offered, 50, quality=True)
    assert told["within"] == {"50": 4.0}
    assert "ndcg" not in told
    nothing = report_of([30], [0], [answer("x")])
    late = loads.row_of(nothing, GRPC, offered, loads.WITHIN_MS, quality=True)
    assert (late["ndcg"], late["ndcg_in_time"]) == (0, None)


def test_a_load_that_the_client_was_too_busy_for_is_thrown_away_and_said() -> None:
    report = report_of([3], [0], [answer("x")], cpu_s=0.81)
    row = loads.row_of(report, GRPC, loads.Offered(CASES, []), loads.WITHIN_MS, quality=True)
    assert row == {"offered_per_s": 1.0, "client_cpu": 0.81, "thrown_away": True}
    named = loads.Load("4", 1.0, 10).key | row
    measured = Measured([{"fathom": {"rows": {"depth-4": [named]}}}])
    assert measured.goodput("fathom", "depth-4", "4", 1.0) == [None]
    assert measured.thrown_away() == ["fathom, depth-4, 1 requests/s (81%)"]


def test_a_server_that_has_collapsed_gets_no_greater_load_of_that_deadline() -> None:
    asked = [loads.Load("4", factor, 100, ms) for factor in (1, 2, 3) for ms in (25, 50)]

    def run(load: loads.Load) -> dict[str, Any]:
        good = load.factor == 1 or load.deadline_ms == 50
        return {"within": {}, "in_time_at_most": 0.5 if good else 0.01}

    rows = loads.run_all(asked, run)
    assert [(row["factor"], row["deadline_ms"]) for row in rows] == [(1, 25), (1, 50), (2, 25), (2, 50), (3, 50)]


def test_loads_ascend_last_until_enough_was_sent_and_a_slow_server_gets_some_that_it_can_bear() -> None:
    base = {4: 2_000.0, 16: 800.0}
    fast = loads.planned(4, base, 5_000.0, tells=False)
    assert len(fast) == len(loads.FACTORS) + len(loads.SWEEP)
    assert [load.per_s for load in fast] == sorted(load.per_s for load in fast)
    slow = loads.planned(16, base, 100.0, tells=True)
    assert [load.per_s for load in slow[:2]] == pytest.approx([70, 90])
    assert {load.deadline_ms for load in slow} == {10, 25, 50}
    assert [loads.Load("4", 1, per_s).lasts_s(4) for per_s in (100, 800, 10_000)] == [4, 2.5, 2]


def side(busy: float, cpu: float, start_s: float = 1.0) -> dict[str, Any]:
    loop = {"requests_per_s": busy, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": cpu}
    row = loads.Load("4", 1.0, 100).key | {"within": {"25": busy}, "offered_per_s": 100.0}
    closed = {depth: {"busy": loop, "alone": loop} for depth in ("4", "16")}
    return {"start_s": start_s, "memory_mb": 100.0, "closed": closed, "rows": {"depth-4": [row]}}


def test_where_fathom_loses_is_what_a_peer_did_better_in_every_turn() -> None:
    turns = [
        {"fathom": side(100, 50), "quick": side(200, 40), "equal": side(100, 50), "now and then": side(90, 60)},
        {"fathom": side(100, 50), "quick": side(160, 40), "equal": side(100, 50), "now and then": side(110, 40)},
    ]
    found = losses(Measured(turns))
    assert {loss.peer for loss in found} == {"quick"}
    text = where_fathom_loses(Measured(turns))
    assert "\n" not in text
    assert (
        "to quick in requests/s at depth 4 with 32 in flight 0.56 (0.50 to 0.62), processor time of a request" in text
    )
    assert "answers within 25 ms at depth 4 at load 1 0.56" in text
    alone = Measured([{name: turn[name] for name in ("fathom", "equal")} for turn in turns])
    assert where_fathom_loses(alone) == "**Where Fathom loses:** nowhere in every turn."


def test_messages_of_model_infer_carry_a_history_and_bring_items() -> None:
    message = infer.infer_message("model", ["a", "bc"], 8)
    fields = list(infer._fields(message))
    assert [number for number, _ in fields] == [1, 5, 5, 7, 7]
    assert fields[3][1] == b"\1\0\0\0a\2\0\0\0bc"
    assert dict(infer._fields(infer.infer_message("model", ["a", "bc"], 8, joined=True)))[7] == b"\x08\0\0\0"
    output, other = (infer._field(5, infer._field(1, name)) for name in (b"recommended", b"scores"))
    answered = infer._field(1, b"model") + other + output + infer._field(6, b"....") + infer._field(6, fields[3][1])
    assert infer.inferred_items(answered) == ["a", "bc"]


def test_answers_differ_by_items_alone() -> None:
    assert GRPC.decode(answer("a", "b", depth=8)) == Answer(["a", "b"], 8)


def wheel(folder: Path) -> str:
    """A package that needs nothing."""
    path = folder / "tiny_peer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_peer.py", "")
        archive.writestr("tiny_peer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-peer\nVersion: 1.0\n")
        archive.writestr(
            "tiny_peer-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_peer-1.0.dist-info/RECORD", "")
    return str(path)


def test_an_environment_is_made_once_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    with pytest.raises(UnavailableError, match=r"^tiny: its environment cannot be made: .*nowhere.*$"):
        environment("tiny", Requirements((str(tmp_path / "nowhere.whl"),)), folder)
    assert list(folder.iterdir()) == []
    (folder / ".tiny.tmp-left").mkdir()
    wanted = Requirements((wheel(tmp_path),), (wheel(tmp_path),))
    made = environment("tiny", wanted, folder)
    assert [path.name for path in folder.iterdir()] == ["tiny"]
    assert Path(made.python).exists()
    assert (made.files / "tiny_peer.py").exists()
    assert made.variables["PYTHONPATH"]
    assert list(made.programs.parent.glob("lib/python*/site-packages/tiny_peer.py"))
    shutil.rmtree(made.files)
    assert environment("tiny", wanted, folder) == made
    assert not made.files.exists(), "it is not made again"


def test_what_needs_nothing_runs_in_this_environment(tmp_path: Path) -> None:
    found = environment("by hand", None, tmp_path / "peers")
    assert found.python == sys.executable
    assert not (tmp_path / "peers").exists()
