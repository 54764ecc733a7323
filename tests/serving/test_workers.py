"""Several worker processes on one port: real processes, killed for real."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import hung_worker
import psutil
import pytest
from callers import PLAIN, calling
from in_process import fathom

from fathom.client import Client
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.serving import workers as workers_module
from fathom.serving.config import ServerSettings

SECONDS = 60
IDS = [f"item-{number}" for number in range(1, 40)]
REQUEST = pb.RecommendRequest(item_ids=["item-1"])
# A parent that bears with stopped workers.
PATIENT = """
from fathom.cli import main
from fathom.serving import workers
workers.STOPPED_BEATS = workers.LOST_BEATS = 1000
main()
"""


def command(bundle: Path, *options: str, patient: bool = False) -> list[str]:
    program = ["-c", PATIENT] if patient else ["-m", "fathom"]
    return [sys.executable, *program, "serve", str(bundle), "--workers", "2", "--json", *options]


@contextmanager
def serving(
    bundle: Path, log: Path, *options: str, patient: bool = False
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    arguments = command(bundle, "--port", "0", *options, patient=patient)
    with (
        log.open("w") as stderr,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["address"], process
        finally:
            process.kill()


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [each for each in found if "spawn_main" in " ".join(each.cmdline())]


def test_a_killed_worker_costs_no_answer_and_is_replaced(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    repository = tmp_path / "repository"
    shutil.copytree(synthetic_bundle, repository / "shop" / "1")
    with serving(repository, log) as (address, process), Client(address, channels=8) as client:
        ids = json.loads((synthetic_bundle / "items" / "catalogue.json").read_bytes())["ids"][:8]
        expected = client.recommend(ids, depth=4).items
        first = workers(process)
        assert len(first) == 2
        # The successor finds two names, and yet has the default that the first one had.
        shutil.copytree(synthetic_bundle, repository / "other" / "1")
        os.kill(first[0].pid, signal.SIGKILL)
        while log.read_text().count('"message": "ready"') < 3:
            assert client.recommend(ids, depth=4).items == expected
        assert len(workers(process)) == 2
        with Client(address, channels=8) as later:
            assert all(later.recommend(ids, depth=4).items == expected for _ in range(8))
        assert "worker 0 ended with code -9; starting another" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert log.read_text().count("drained; 0 calls cut off") == 2


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stuck_worker_holds_nobody_up_and_follows_when_it_wakes(synthetic_bundle: Path, tmp_path: Path) -> None:
    log, options = tmp_path / "log", ("--history", f"sqlite:{tmp_path / 'history.db'}", "--drain-s", "0")
    with (
        serving(synthetic_bundle, log, *options, patient=True) as (address, process),
        grpc.insecure_channel(address) as channel,
    ):
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]

        def delete() -> int:
            return int(stub.DeleteUser(pb.DeleteUserRequest(user_id="anna"), timeout=SECONDS).workers_behind)

        assert delete() == 0
        port = int(address.rpartition(":")[2])
        (stuck,) = [
            each
            for each in workers(process)
            if not any(link.status == "ESTABLISHED" and link.laddr.port == port for link in each.net_connections())
        ]
        stuck.suspend()
        try:
            started = time.monotonic()
            assert [delete() for _ in range(30)] == [1] * 30
            assert stub.Reload(pb.ReloadRequest(), timeout=SECONDS).workers_behind == 1
            # Only the first waits for an answer.
            assert time.monotonic() - started < 15
            assert log.read_text().count(f"(process {stuck.pid}) does not answer; the others go on") == 1
        finally:
            stuck.resume()
        until(lambda: "answers again; repeating the calls it missed" in log.read_text())
        until(lambda: delete() == 0)
        stuck.suspend()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert "has not ended within 5 s; it is killed" in log.read_text()
        assert not stuck.is_running()


async def connected(stack: AsyncExitStack, address: str) -> list[recommender_pb2_grpc.RecommenderStub]:
    """Stubs on 16 connections that are open."""
    channels = [grpc.aio.insecure_channel(address, options=PLAIN) for _ in range(16)]
    for each in channels:
        await asyncio.wait_for((await stack.enter_async_context(each)).channel_ready(), SECONDS)
    return [recommender_pb2_grpc.RecommenderStub(each) for each in channels]  # type: ignore[no-untyped-call]


async def test_a_killed_worker_takes_only_the_calls_with_it_that_it_had(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(synthetic_bundle, log) as (address, process):
        async with calling(address, IDS, callers=32, go_on=True) as found:
            await found.reach(200)
            os.kill(workers(process)[0].pid, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: log.read_text().count('"message": "ready"') == 3)
            await found.reach(200)
        assert set(found.statuses) <= {"OK", "UNAVAILABLE"}, found
        # Each caller of that worker, which may be none, loses one call, and perhaps one more that finds it gone.
        assert found.statuses["UNAVAILABLE"] <= 64, found


async def test_a_stopped_worker_is_replaced_and_callers_go_on(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(synthetic_bundle, log) as (address, process):
        async with calling(address, IDS, callers=32, go_on=True) as found, AsyncExitStack() as stack:
            await found.reach(200)
            stuck = workers(process)[0]
            stuck.suspend()
            await asyncio.to_thread(until, lambda: "is stopped; it is killed" in log.read_text())
            for stub in await connected(stack, address):
                assert (await stub.Recommend(REQUEST, timeout=SECONDS)).items
            await asyncio.to_thread(until, lambda: log.read_text().count('"message": "ready"') == 3)
            await found.reach(200)
        assert set(found.statuses) <= {"OK", "UNAVAILABLE"}, found
        assert f"worker 0 (process {stuck.pid}) is stopped" in log.read_text()
        assert len(workers(process)) == 2


async def test_a_worker_that_hangs_is_replaced(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "BEAT_S", 0.02)

    async def relay(worker: Any, notice: Any) -> None:
        """Nobody says anything."""

    worker = workers_module._Worker(ServerSettings(), synthetic_bundle, hung_worker.run, 0, relay)
    await worker.start()
    keeping = asyncio.create_task(worker.keep())
    await asyncio.to_thread(until, lambda: "worker 0 ended with code -9; starting another" in caplog.text)
    keeping.cancel()
    worker.kill()
    await worker.ended()
    assert "has not answered for 0.2 s; it is killed" in caplog.text


async def test_workers_serve_on_while_their_parent_is_stopped(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(synthetic_bundle, log) as (address, process):
        first = {each.pid for each in workers(process)}
        async with calling(address, IDS, callers=8, go_on=True) as found:
            process.send_signal(signal.SIGSTOP)
            await found.reach(1000)
            process.send_signal(signal.SIGCONT)
            await found.reach(1000)
        assert set(found.statuses) == {"OK"}, found
        assert {each.pid for each in workers(process)} == first


async def test_who_connects_while_a_worker_drains_reaches_the_others(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(synthetic_bundle, log) as (address, process):
        async with calling(address, IDS, callers=8, go_on=True) as found, AsyncExitStack() as stack:
            await found.reach(200)
            workers(process)[0].terminate()
            await asyncio.to_thread(until, lambda: "SIGTERM: draining" in log.read_text())
            for stub in await connected(stack, address):
                assert (await stub.Recommend(REQUEST, timeout=SECONDS)).items
            await asyncio.to_thread(until, lambda: log.read_text().count('"message": "ready"') == 3)
            await found.reach(200)
        assert set(found.statuses) <= {"OK", "UNAVAILABLE"}, found
        assert "worker 0 ended with code 0; starting another" in log.read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_sighup_reloads_and_other_signals_end_nothing(
    make_bundle: Callable[..., Path], synthetic_bundle: Path, tmp_path: Path, count: int
) -> None:
    log, shop = tmp_path / "log", tmp_path / "repository" / "shop"
    shutil.copytree(synthetic_bundle, shop / "1")
    with serving(shop.parent, log, "--workers", str(count)) as (_, process):
        first = {each.pid for each in workers(process)}
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            for each in (process.pid, *first):
                os.kill(each, number)
        shutil.copytree(make_bundle(strategy="nested"), shop / "new")
        (shop / "new").rename(shop / "2")
        process.send_signal(signal.SIGHUP)
        until(lambda: log.read_text().count("serves now, in place of") == count)
        assert {each.pid for each in workers(process)} == first
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_workers_do_not_outlive_a_killed_parent(synthetic_bundle: Path, tmp_path: Path) -> None:
    with serving(synthetic_bundle, tmp_path / "log") as (_, process):
        children = workers(process)
        process.kill()
        process.wait(SECONDS)
        _, alive = psutil.wait_procs(children, timeout=SECONDS)
        assert not alive


def test_what_keeps_workers_from_starting_is_one_line(synthetic_bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for bundle, options, expected in (
            (synthetic_bundle, ["--port", str(port)], f"cannot listen on 127.0.0.1:{port}"),
            (tmp_path / "none", ["--port", "0"], str(tmp_path / "none")),
        ):
            ended = subprocess.run(
                command(bundle, *options), capture_output=True, text=True, timeout=SECONDS, check=False
            )
            assert ended.returncode == 2
            assert len(ended.stderr.strip().splitlines()) == 1
            assert expected in ended.stderr


@pytest.mark.parametrize("value", ["0", "many"])
def test_an_impossible_number_of_workers_is_refused(synthetic_bundle: Path, value: str) -> None:
    assert "workers" in fathom("serve", synthetic_bundle, "--workers", value, code=2).stderr
