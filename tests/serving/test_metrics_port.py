"""What is sent to the metrics port, and what is not, costs nobody else anything."""

import asyncio
import gzip
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fathom.errors import ConfigError
from fathom.serving import metrics_port as module
from fathom.serving.metrics_port import MetricsPort


class Depth(Collector):
    """One gauge, which is read when the test says so, and has as much to say as the test wants."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.text = "how deep it is"
        self.failure: Exception | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        self.go.wait(10)
        if self.failure:
            raise self.failure
        yield GaugeMetricFamily("depth", self.text, value=3)


class Port:
    def __init__(self, port: int, depth: Depth) -> None:
        self.port, self.depth = port, depth

    async def connect(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        return reader, writer

    async def ask(self, request: str, *fields: str) -> tuple[int, str, bytes]:
        """Status, headers and body of an answer."""
        reader, writer = await self.connect("\r\n".join((request, *fields, "", "")).encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head.decode(), body


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    registry = CollectorRegistry()
    depth = Depth()
    registry.register(depth)
    server = await MetricsPort(registry, lambda: "serving").start("127.0.0.1", 0)
    yield Port(server.port, depth)
    depth.go.set()
    await server.close()


async def test_metrics_are_shown_in_the_format_that_is_asked_for(port: Port) -> None:
    status, head, body = await port.ask("GET /metrics HTTP/1.1", "Host: somewhere")
    assert (status, "text/plain" in head, b"\ndepth 3.0\n" in body) == (200, True, True)
    assert f"Content-Length: {len(body)}" in head
    status, head, body = await port.ask("GET /metrics?name[]=depth HTTP/1.0", "accept: application/openmetrics-text")
    assert (status, "openmetrics-text" in head, body.endswith(b"# EOF\n")) == (200, True, True)
    status, head, body = await port.ask("GET /metrics HTTP/1.1", "Accept-Encoding: gzip")
    assert "Content-Encoding: gzip" in head
    assert b"\ndepth 3.0\n" in gzip.decompress(body)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /healthz HTTP/1.1", 200),
        ("GET / HTTP/1.1", 404),
        ("GET /metrics/../healthz HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("DELETE /healthz HTTP/1.1", 405),
        ("PRI * HTTP/2.0", 400),
        ("GET /metrics", 400),
        ("\0\xff", 400),
        ("GET /" + 9_000 * "a" + " HTTP/1.1", 431),
    ],
)
async def test_every_request_gets_a_status(port: Port, request_line: str, status: int) -> None:
    assert (await port.ask(request_line))[0] == status


async def test_head_is_get_without_a_body(port: Port) -> None:
    for path in ("/metrics", "/healthz", "/nothing"):
        asked = await port.ask(f"GET {path} HTTP/1.1")
        assert await port.ask(f"HEAD {path} HTTP/1.1") == (*asked[:2], b"")


async def test_the_answer_to_a_request_with_a_large_body_arrives(port: Port) -> None:
    assert (await port.ask("POST /metrics HTTP/1.1", "", 100_000 * "a"))[0] == 405


async def test_half_a_request_costs_no_thread_and_ends(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 0.2)
    threads = threading.active_count()
    halves = [await port.connect(b"GET /metr"[: number % 10]) for number in range(module.MOST_CONNECTIONS)]
    assert (await port.ask("GET /healthz HTTP/1.1"))[0] == 200
    assert threading.active_count() == threads
    for reader, writer in halves:
        assert await ended(reader)
        writer.close()


async def test_of_too_many_connections_the_oldest_makes_room(port: Port) -> None:
    halves = [await port.connect(b"GET ") for _ in range(3 * module.MOST_CONNECTIONS)]
    assert (await port.ask("GET /metrics HTTP/1.1"))[0] == 200
    oldest, newest = halves[0], halves[-1]
    assert await ended(oldest[0])
    newest[1].write(b"/healthz HTTP/1.1\r\n\r\n")
    assert (await asyncio.wait_for(newest[0].read(), 10)).startswith(b"HTTP/1.1 200 OK")
    for _, writer in halves:
        writer.close()


async def test_who_does_not_read_the_answer_is_cut_off(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 0.2)
    port.depth.text = 20_000_000 * "a"
    reader, writer = await port.connect(b"GET /metrics HTTP/1.1\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: len(asyncio.all_tasks()) > 1)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert not (await read_all(reader)).endswith(b"depth 3.0\n")
    writer.close()


async def test_probes_are_answered_while_metrics_are_read(port: Port) -> None:
    port.depth.go.clear()
    scrapes = [asyncio.create_task(port.ask("GET /metrics HTTP/1.1")) for _ in range(8)]
    await asyncio.sleep(0)
    assert (await port.ask("GET /healthz HTTP/1.1"))[0] == 200
    assert not any(each.done() for each in scrapes)
    port.depth.go.set()
    assert {each[0] for each in await asyncio.gather(*scrapes)} == {200}


async def test_metrics_that_cannot_be_read_are_logged(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.depth.failure = RuntimeError("no depth")
    with caplog.at_level(logging.ERROR):
        assert (await port.ask("GET /metrics HTTP/1.1"))[0] == 500
    assert "metrics cannot be read" in caplog.text
    port.depth.failure = None
    assert (await port.ask("GET /metrics HTTP/1.1"))[0] == 200


async def test_a_port_in_use_is_named(port: Port) -> None:
    with pytest.raises(ConfigError, match=rf"metrics port 127\.0\.0\.1:{port.port} cannot be used: .*; choose another"):
        await MetricsPort(CollectorRegistry(), lambda: "serving").start("127.0.0.1", port.port)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while more := await asyncio.wait_for(reader.read(1 << 20), 10):
            found += more
    except ConnectionError:
        pass
    return found


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection without a word."""
    return await read_all(reader) == b""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
