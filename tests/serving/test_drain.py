"""Signals, in a process of its own: what is in flight finishes, nobody else gets in, and the exit code is 0."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers import calling

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

# A server whose engine, once warm, says "running" and waits for a line of standard input.
HELD = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from fake_engine import FakeEngine
from fathom.serving import process, server
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
process.serve(load_settings({"port": 0, "log_format": "text"}, environment={}), Path(sys.argv[1]), ready=ready)
"""
SUPPORT = Path(__file__).parents[1] / "support"
REQUEST = pb.RecommendRequest(item_ids=["item-1"])

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]


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


def code_of(stub: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as ended:
        stub.Recommend(REQUEST, timeout=0.2)
    code: grpc.StatusCode = ended.value.code()
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(held: subprocess.Popen[str], number: signal.Signals) -> None:
    with grpc.insecure_channel(line(held)) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        inside = stub.Recommend.future(REQUEST, timeout=30)
        assert line(held) == "running"
        held.send_signal(number)
        log_line(held, f"{number.name}: draining")
        # A call that is just in time waits for the engine, as the first does.
        while (code := code_of(stub)) is grpc.StatusCode.DEADLINE_EXCEEDED:
            pass
        assert code is grpc.StatusCode.UNAVAILABLE
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


IDS = [f"item-{number}" for number in range(1, 40)]


def started(bundle: Path, log: Path, *options: str) -> tuple[str, subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--json", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    return json.loads(line(process))["address"], process


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_callers_get_answers_or_unavailable_when_their_server_drains(
    synthetic_bundle: Path, tmp_path: Path, workers: str, transport: str
) -> None:
    options = ("--workers", workers, "--transport", transport)
    address, process = started(synthetic_bundle, tmp_path / "log", *options)
    with process:
        try:
            async with calling(address, IDS) as found:
                await found.reach(500)
                process.terminate()
            assert await asyncio.to_thread(process.wait, 30) == 0
        finally:
            process.kill()
    assert set(found.statuses) == {"OK", "UNAVAILABLE"}, found
    said = (tmp_path / "log").read_text()
    assert said.count("drained; 0 calls cut off") == int(workers)
    assert "Traceback" not in said


async def test_every_answer_arrives_although_the_server_drains(local: LocalServer) -> None:
    async with local(metrics_port=0) as it, calling(it.info.address, IDS) as found:
        await found.reach(500)
        assert await it.server.drain() == 0
    assert set(found.statuses) == {"OK", "UNAVAILABLE"}, found
    counted = it.server._metrics.registry.get_sample_value
    assert counted("fathom_calls_total", {"method": "Recommend", "status": "OK"}) == found.statuses["OK"]


async def test_calls_that_wait_for_grpc_to_hand_them_over_get_unavailable_too(local: LocalServer) -> None:
    async with local() as it, calling(it.info.address, IDS, callers=16) as found:
        await found.reach(100)
        await it.server.close()
    assert set(found.statuses) == {"OK", "UNAVAILABLE"}, found
