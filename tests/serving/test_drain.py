"""Signals, in a process of its own: what is in flight finishes, nobody else gets in, and the exit code is 0."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

# A server whose engine, once warm, says "running" and waits for a line of standard input.
HELD = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from fake_engine import FakeEngine
from fathom.serving import server
from fathom.serving.config import load_settings

warm = False

def hold(batch, depth):
    if warm:
        print("running", flush=True)
        sys.stdin.readline()

def ready(info):
    global warm
    warm = True
    print(info.address, flush=True)

server.open_engine = lambda bundle, **_: FakeEngine(bundle.vectors, bundle.depths, on_run=hold)
server.serve(load_settings({"port": 0, "log_format": "text"}, environment={}), Path(sys.argv[1]), ready=ready)
"""
SUPPORT = Path(__file__).parents[1] / "support"
REQUEST = pb.RecommendRequest(item_ids=["item-1"])


@pytest.fixture
def held(synthetic_bundle: Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = [sys.executable, "-c", HELD, str(synthetic_bundle), str(SUPPORT)]
    with subprocess.Popen(program, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def log_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    assert any(text in each for each in process.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(held: subprocess.Popen[str], number: signal.Signals) -> None:
    with grpc.insecure_channel(line(held)) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        inside = stub.Recommend.future(REQUEST, timeout=30)
        assert line(held) == "running"
        held.send_signal(number)
        log_line(held, f"{number.name}: draining")
        with pytest.raises(grpc.RpcError) as refused:
            stub.Recommend(REQUEST, timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert held.stdin is not None
        held.stdin.write("\n")
        held.stdin.flush()
        assert inside.result(timeout=30).items
        log_line(held, "drained; 0 calls cut off")
        assert held.wait(timeout=30) == 0


def test_a_second_signal_ends_the_process_at_once(held: subprocess.Popen[str]) -> None:
    with grpc.insecure_channel(line(held)) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        inside = stub.Recommend.future(REQUEST, timeout=30)
        assert line(held) == "running"
        held.send_signal(signal.SIGTERM)
        log_line(held, "SIGTERM: draining")
        held.send_signal(signal.SIGTERM)
        assert held.wait(timeout=30) == -signal.SIGTERM
        assert inside.code() is grpc.StatusCode.UNAVAILABLE
