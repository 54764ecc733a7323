"""A real server in a process of its own, and one inside the test's event loop whose engine the test controls."""

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_engine import FakeEngine

from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle
from fathom.runtime.pipeline import Pipeline
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo
from fathom.serving.server import Server

SERVE = """
import sys
from pathlib import Path
from fathom.serving.config import load_settings
from fathom.serving.process import serve
serve(
    load_settings({"port": 0, "metrics_port": 0, "max_queue": 4096, "history": "memory", "catalogue": "memory",
        "transport": sys.argv[2], "experiments": sys.argv[3], "experiments_log": sys.argv[4]}, environment={}),
    Path(sys.argv[1]),
    ready=lambda info: print(info.address, info.metrics_address, flush=True),
)
"""


#: Of which none runs.
EXPERIMENTS = """
salt: a-salt-of-tests
experiments:
  one: {arms: {control: {share: 0.5}, shallow: {share: 0.5, max_depth: 4}}, primary: {outcome: click}}
"""


@dataclass(frozen=True)
class Process:
    address: str
    metrics_address: str
    process: subprocess.Popen[str]
    log: Path


#: Whose tests run on both transports; of the rest, what they test is behind the transport.
ON_BOTH = {
    "test_bad_input",
    "test_attacks",
    "test_backlog",
    "test_connections",
    "test_drain",
    "test_fairness",
    "test_fuzz",
    "test_server",
    "test_service",
    "test_shared_address",
    "test_tls",
    "test_transports",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transport" in metafunc.fixturenames:
        names = ("http2", "aio") if metafunc.module.__name__.rpartition(".")[2] in ON_BOTH else ("http2",)
        metafunc.parametrize("transport", names, scope="session")


@pytest.fixture(scope="module")
def live(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Process]:
    """A server over the synthetic bundle with onnxruntime; it must outlive everything that a module's tests send."""
    folder = tmp_path_factory.mktemp("server")
    log, experiments = folder / "log", folder / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(synthetic_bundle), transport, str(experiments), str(folder / "logs")],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout:
        ready = process.stdout.readline().split()
        assert len(ready) == 2, log.read_text()
        yield Process(*ready, process, log)
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def channel(live: Process) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(live.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> recommender_pb2_grpc.RecommenderStub:
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


class Held:
    """Engines that stand still at each run until the test lets them go on, or fail as told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.reached = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.batches: list[int] = []

    def engine(self, bundle: Bundle, threads: int) -> FakeEngine:  # noqa: ARG002
        return FakeEngine(bundle.vectors, bundle.depths, on_run=self._on_run)

    def _on_run(self, batch: int, depth: int) -> None:  # noqa: ARG002
        if not self.go.is_set():
            self.batches.append(batch)
            self.reached.release()
            self.go.wait(timeout=30)
        if self.failure:
            raise self.failure


@dataclass(frozen=True)
class Local:
    server: Server
    info: ServerInfo
    held: Held
    stub: recommender_pb2_grpc.RecommenderStub
    channel: grpc.aio.Channel

    @property
    def pipeline(self) -> Pipeline:
        return self.server.bundles.choose("").pipeline


LocalServer = Callable[..., AbstractAsyncContextManager[Local]]


@pytest.fixture
def local(synthetic_bundle: Path, transport: str) -> LocalServer:
    """``async with local(max_queue=4) as it``: a started server in this event loop and a client for it.

    ``path``: another bundle than the synthetic one.
    """

    @asynccontextmanager
    async def running(path: Path = synthetic_bundle, **settings: Any) -> AsyncIterator[Local]:
        held = Held()
        chosen = ServerSettings(**{"port": 0, "transport": transport, **settings})
        async with Server(chosen, path, make_engine=held.engine) as server:
            info = await server.start()
            async with grpc.aio.insecure_channel(info.address) as opened:
                stub = recommender_pb2_grpc.RecommenderStub(opened)  # type: ignore[no-untyped-call]
                try:
                    yield Local(server, info, held, stub, opened)
                finally:
                    held.go.set()

    return running
