"""The load generator speaks HTTP/2 by hand; here with gRPC's own servers."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from fathom.benchmarks import http2_load
from fathom.benchmarks.server import METHOD
from fathom.errors import ConfigError, ConnectError

MESSAGES = [f"message {number}".encode() for number in range(1_000)]
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(handler: Handler, *options: tuple[str, int]) -> Iterator[str]:
    service, method = METHOD.strip("/").split("/")
    call = grpc.unary_unary_rpc_method_handler(handler)
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: call}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
    return request


def test_each_call_of_a_closed_loop_gets_its_own_answer() -> None:
    with serving(echo) as address:
        report = http2_load.closed(address, MESSAGES, 8, 2, 0.2, keep=True)
    assert len(report.answers) > 8
    assert list(report.answers) == [MESSAGES[number % 1_000] for number in range(len(report.answers))]
    assert report.counts() == {"OK": len(report.answers)}
    assert 0 < report.per_s() <= len(report.answers) / 0.2
    assert report.quantile_ms("OK", 0.5) > 0
    assert report.quantile_ms("CANCELLED", 0.5) is None


def test_an_open_loop_starts_calls_at_its_rate_whatever_becomes_of_them() -> None:
    with serving(echo) as address:
        report = http2_load.open(address, MESSAGES, 1_000, 1, 0.3)
    assert 230 < len(report.due_s) < 370
    assert report.counts() == {"OK": len(report.due_s)}
    assert (np.diff(report.due_s) > 0).all()
    assert (report.due_s <= report.sent_s).all()
    assert (report.sent_s < report.ended_s).all()


def test_calls_end_at_their_deadline_where_the_server_is_silent() -> None:
    done = threading.Event()

    def silent(request: bytes, _: grpc.ServicerContext) -> bytes:
        done.wait(5)
        return request

    with serving(silent) as address:
        report = http2_load.open(address, MESSAGES, 200, 1, 0.1, 100)
        done.set()
    assert report.counts() == {"DEADLINE_EXCEEDED": len(report.due_s)}
    assert report.took_ms.min() > 90
    assert report.per_s() == 0


def test_statuses_are_the_servers_and_metadata_and_deadline_reach_it() -> None:
    seen = []

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((dict(context.invocation_metadata())["fathom-client"], context.time_remaining()))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "25"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc-status 0: full, näher " + "x" * 500)

    with serving(refuse) as address:
        report = http2_load.closed(address, MESSAGES, 4, 1, 0.1, 2_000, metadata={"fathom-client": "a"})
    assert report.counts() == {"RESOURCE_EXHAUSTED": len(seen)}
    assert len(seen) > 4
    assert all(name == "a" and 1 < left_s <= 2 for name, left_s in seen)


def test_no_more_calls_are_open_than_the_server_allows() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def count(request: bytes, _: grpc.ServicerContext) -> bytes:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        with lock:
            now[0] -= 1
        return request

    with serving(count, ("grpc.max_concurrent_streams", 3)) as address:
        report = http2_load.closed(address, MESSAGES, 64, 1, 0.2)
    assert report.counts() == {"OK": len(report.due_s)}
    assert most[0] <= 3


def test_large_messages_wait_for_the_servers_window() -> None:
    large = [bytes([number]) * 16_000 for number in range(200)]
    with serving(echo) as address:
        report = http2_load.closed(address, large, 100, 1, 0.3, keep=True)
        with pytest.raises(ConfigError, match="one HTTP/2 frame"):
            http2_load.closed(address, [bytes(20_000)], 1, 1, 0.1)
    assert report.counts() == {"OK": len(report.due_s)}
    assert list(report.answers) == [large[number % 200] for number in range(len(report.answers))]


def test_a_connection_that_the_server_ends_for_its_age_is_replaced_without_an_error() -> None:
    age = (("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 1_000))
    with serving(echo, *age) as address:
        report = http2_load.closed(address, MESSAGES, 16, 2, 0.8)
    assert report.counts() == {"OK": len(report.due_s)}
    assert report.ended_s.max() > 0.7


def test_what_is_no_http2_server_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            listener.accept()[0].close()

        threading.Thread(target=hang_up).start()
        with pytest.raises(ConnectError, match="no HTTP/2 server"):
            http2_load.closed(address, MESSAGES, 1, 1, 0.1)
    with pytest.raises(ConnectError, match="no answer"):
        http2_load.closed(address, MESSAGES, 1, 1, 0.1)
    with pytest.raises(ConfigError, match="no messages"):
        http2_load.closed(address, [], 1, 1, 0.1)
    with pytest.raises(ConfigError, match="evenly"):
        http2_load.closed(address, MESSAGES, 3, 2, 0.1)
