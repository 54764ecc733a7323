"""Deadlines, cancellation, overload, warm-up, drain, health, reflection, metrics: with an engine the test holds."""

import asyncio
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.serving import server as server_module
from fathom.serving.config import ServerSettings
from fathom.serving.history.contract import digest_of
from fathom.serving.server import SERVICE, Server

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
REQUEST = pb.RecommendRequest(item_ids=["item-1", "item-2"])


async def status(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def reached(held: Any) -> None:
    """The engine stands still inside a run."""
    assert await asyncio.to_thread(held.reached.acquire, timeout=30)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def health_of(it: Any, service: str = SERVICE) -> int:
    check = health_pb2_grpc.HealthStub(it.channel).Check
    return int((await check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status)


async def get(address: str | None, path: str) -> tuple[int, str]:
    def got() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(got)


async def metrics_of(it: Any) -> str:
    code, text = await get(it.info.metrics_address, "/metrics")
    assert code == 200
    return text


async def test_a_deadline_that_no_depth_can_meet_is_refused(local: LocalServer, uncounted_bundle: Path) -> None:
    # gRPC rounds so short a time up, and depth 0, or a fast machine, needs less than what it makes of it.
    async with local(path=uncounted_bundle) as it:
        it.held.go.clear()
        code, _ = await status(it.stub.Recommend(REQUEST, timeout=1e-4))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        it.held.go.set()
        assert (await it.stub.Recommend(REQUEST, timeout=10)).depth


async def test_a_request_that_can_no_longer_make_it_does_not_reach_the_engine(local: LocalServer) -> None:
    async with local() as it:
        it.held.go.clear()
        first = it.stub.Recommend(REQUEST, timeout=30)
        await reached(it.held)
        code, _ = await status(it.stub.Recommend(REQUEST, timeout=0.05))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: it.pipeline.waiting == 0)
        it.held.go.set()
        assert (await first).depth
        assert it.held.batches == [1]


async def test_a_cancelled_request_leaves_its_lane(local: LocalServer) -> None:
    async with local() as it:
        it.held.go.clear()
        first = it.stub.Recommend(REQUEST, timeout=30)
        await reached(it.held)
        second = it.stub.Recommend(REQUEST, timeout=30)
        await until(lambda: it.pipeline.waiting == 1)
        second.cancel()
        await until(lambda: it.pipeline.waiting == 0)
        it.held.go.set()
        assert (await first).depth
        assert it.held.batches == [1]


async def test_a_full_server_refuses_at_once_and_recovers(local: LocalServer, uncounted_bundle: Path) -> None:
    async with local(uncounted_bundle, max_queue=3) as it:
        it.held.go.clear()
        running = it.stub.Recommend(REQUEST, timeout=30)
        await reached(it.held)
        waiting = [it.stub.Recommend(REQUEST, timeout=30) for _ in range(3)]
        await until(lambda: it.pipeline.waiting == 3)
        refused = it.stub.Recommend(REQUEST, timeout=30)
        code, _ = await status(refused)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        batch = await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=[REQUEST] * 2), timeout=30)
        assert {result.error.code for result in batch.results} == {code.value[0]}
        assert all(result.error.retry_after_ms > 0 for result in batch.results)
        it.held.go.set()
        answers = await asyncio.gather(running, *waiting)
        assert all(len(answer.items) == 10 for answer in answers)
        assert (await it.stub.Recommend(REQUEST, timeout=10)).depth


async def test_a_client_that_floods_does_not_make_the_others_wait(
    local: LocalServer, monkeypatch: pytest.MonkeyPatch, uncounted_bundle: Path
) -> None:
    def slow(_: object, depths: Collection[int], lengths: Collection[int], **__: object) -> CostModel:
        return CostModel({(depth, length): Line(0.0, 0.01) for depth in depths for length in lengths}, tail=0.0)

    # The requests come faster than the engine works, however busy this machine is.
    monkeypatch.setattr("fathom.runtime.pipeline.measure", slow)
    flood = (("fathom-client", "flood"),)
    async with local(uncounted_bundle, max_queue=100) as it:
        it.held.go.clear()
        first = it.stub.Recommend(REQUEST)
        await reached(it.held)
        calls = [it.stub.Recommend(REQUEST, metadata=flood) for _ in range(100)]
        await until(lambda: it.pipeline.waiting == 100)
        code, _ = await status(it.stub.Recommend(REQUEST, metadata=flood))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with grpc.aio.insecure_channel(it.info.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            # Another connection is another client.
            patient = recommender_pb2_grpc.RecommenderStub(other).Recommend(REQUEST)  # type: ignore[no-untyped-call]
            await until(lambda: it.pipeline.waiting == 101)
            it.held.go.set()
            # It came last, and is in the first of several batches.
            answers = await asyncio.gather(*calls)
            assert (await patient).timings.queue_us < min(answer.timings.queue_us for answer in answers)
        assert (await first).depth


async def test_deletions_and_reloads_are_passed_on_and_the_answer_counts_who_is_behind(synthetic_bundle: Path) -> None:
    told: list[tuple[str, str]] = []

    async def tell(what: str, name: str) -> int:
        told.append((what, name))
        return 3

    settings = ServerSettings(port=0, history="memory")
    async with Server(settings, synthetic_bundle, tell_workers=tell) as server:
        info = await server.start()
        async with grpc.aio.insecure_channel(info.address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            deleted = await stub.DeleteUser(pb.DeleteUserRequest(user_id="anna"), timeout=10)
            reloaded = await stub.Reload(pb.ReloadRequest(), timeout=10)
    assert told == [("forget", digest_of("anna")), ("reload", "")]
    assert (deleted.workers_behind, reloaded.workers_behind) == (3, 3)


async def test_a_deletion_that_fails_half_way_is_passed_on_all_the_same(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.serving.sqlite_file.BUSY_MS", 10)
    told: list[tuple[str, str]] = []

    async def tell(what: str, name: str) -> int:
        told.append((what, name))
        return 0

    path = tmp_path / "history.db"
    settings = ServerSettings(port=0, history=f"sqlite:{path}")
    async with Server(settings, synthetic_bundle, tell_workers=tell) as server:
        info = await server.start()
        async with grpc.aio.insecure_channel(info.address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            events = [pb.Event(event_id="e1", item_id="item-1", timestamp=1)]
            await stub.AppendEvents(pb.AppendEventsRequest(user_id="anna", events=events), timeout=10)
            with closing(sqlite3.connect(path)) as reader:
                reader.execute("BEGIN")
                assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.DeleteUser(pb.DeleteUserRequest(user_id="anna"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert told == [("forget", digest_of("anna"))]


async def test_a_stream_has_a_bounded_number_of_requests_waiting(local: LocalServer) -> None:
    async with local(stream_in_flight=4) as it:
        it.held.go.clear()
        stream = it.stub.RecommendStream(iter([REQUEST] * 50), timeout=30)
        await reached(it.held)
        await until(lambda: it.pipeline.waiting + sum(it.held.batches) == 4)
        for _ in range(100):
            await asyncio.sleep(0)
            assert it.pipeline.waiting + sum(it.held.batches) == 4
        it.held.go.set()
        assert [result.HasField("response") async for result in stream] == [True] * 50


async def test_an_engine_that_fails_makes_its_batch_unavailable_and_the_server_goes_on(local: LocalServer) -> None:
    async with local() as it:
        it.held.failure = RuntimeError("secret pointer 0xdeadbeef")
        code, text = await status(it.stub.Recommend(REQUEST, timeout=10))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "0xdeadbeef" not in text
        it.held.failure = None
        assert (await it.stub.Recommend(REQUEST, timeout=10)).depth


async def test_what_nobody_foresaw_is_internal_says_nothing_and_is_logged(
    local: LocalServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with local() as it:

        def broken(*_: object) -> None:
            raise KeyError("secret")

        with monkeypatch.context() as patched:
            patched.setattr(it.pipeline, "enter", broken)
            code, text = await status(it.stub.Recommend(REQUEST, timeout=10))
            assert code is grpc.StatusCode.INTERNAL
            assert "secret" not in text
            batch = await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=[REQUEST]), timeout=10)
            assert (batch.results[0].error.code, batch.results[0].error.message) == (13, text)
        assert [record.exc_info is not None for record in caplog.records] == [True, True]
        assert (await it.stub.Recommend(REQUEST, timeout=10)).depth


async def test_before_it_is_warm_the_server_listens_but_serves_nobody(synthetic_bundle: Path) -> None:
    warming, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(batch: int, depth: int) -> None:  # noqa: ARG001
        loop.call_soon_threadsafe(warming.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(timeout=30)

    with socket.socket() as probe, socket.socket() as other:
        for each in (probe, other):
            each.bind(("127.0.0.1", 0))
        port, metrics_port = probe.getsockname()[1], other.getsockname()[1]

    def make_engine(bundle: Bundle, threads: int) -> FakeEngine:  # noqa: ARG001
        return FakeEngine(bundle.vectors, bundle.depths, on_run=hold)

    async with (
        Server(
            ServerSettings(port=port, metrics_port=metrics_port), synthetic_bundle, make_engine=make_engine
        ) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        starting = asyncio.create_task(server.start())
        await asyncio.wait_for(warming.wait(), 30)
        check = health_pb2_grpc.HealthStub(channel).Check
        recommend = channel.unary_unary(f"/{SERVICE}/Recommend")
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status(recommend(REQUEST.SerializeToString())) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server is starting; use another one, or try again later",
        )
        assert await get(f"127.0.0.1:{metrics_port}", "/healthz") == (503, "starting\n")
        go.set()
        await starting
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert await recommend(REQUEST.SerializeToString())


async def test_a_worker_takes_no_connections_before_it_can_answer(synthetic_bundle: Path) -> None:
    """The kernel would bring it calls that other workers could answer."""
    warming, go, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def hold(batch: int, depth: int) -> None:  # noqa: ARG001
        loop.call_soon_threadsafe(warming.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(timeout=30)

    def make_engine(bundle: Bundle, threads: int) -> FakeEngine:  # noqa: ARG001
        return FakeEngine(bundle.vectors, bundle.depths, on_run=hold)

    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        settings = ServerSettings(port=port)
        async with Server(settings, synthetic_bundle, make_engine=make_engine, shares_port=True) as server:
            starting = asyncio.create_task(server.start())
            await asyncio.wait_for(warming.wait(), 30)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            go.set()
            assert (await starting).address == f"127.0.0.1:{port}"
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await channel.unary_unary(f"/{SERVICE}/Recommend")(REQUEST.SerializeToString(), timeout=30)


async def test_draining_finishes_what_is_inside_and_lets_nobody_in(local: LocalServer, transport: str) -> None:
    async with local(metrics_port=0) as it:
        assert await health_of(it) == health_pb2.HealthCheckResponse.SERVING
        assert await get(it.info.metrics_address, "/healthz") == (200, "serving\n")
        it.held.go.clear()
        inside = it.stub.Recommend(REQUEST, timeout=30)
        await reached(it.held)
        stream = it.stub.RecommendStream(timeout=30)
        await stream.write(REQUEST)
        await until(lambda: it.pipeline.waiting == 1)
        watch = health_pb2_grpc.HealthStub(it.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.create_task(it.server.drain())
        await until(lambda: it.server._gate.state == "draining")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await get(it.info.metrics_address, "/healthz") == (503, "draining\n")
        # Clients are told to call elsewhere; over grpc.aio their connection stays for as long as there are calls.
        code, text = await status(it.stub.Recommend(REQUEST, timeout=30))
        assert (code, "draining" in text) == (grpc.StatusCode.UNAVAILABLE, transport == "aio")
        assert not draining.done()
        it.held.go.set()
        assert (await inside).depth
        # The stream's open request is answered, and then the client learns that it has to go elsewhere.
        assert (await stream.read()).HasField("response")
        assert (await status(stream.read()))[0] is grpc.StatusCode.UNAVAILABLE
        assert await draining == 0


async def test_a_drain_does_not_wait_longer_than_it_is_told(local: LocalServer) -> None:
    async with local(drain_s=0.05) as it:
        it.held.go.clear()
        inside = it.stub.Recommend(REQUEST, timeout=30)
        await reached(it.held)
        assert await it.server.drain() == 1
        assert (await status(inside))[0] is grpc.StatusCode.UNAVAILABLE


async def test_health_is_watched_and_known_by_service(local: LocalServer) -> None:
    async with local() as it:
        watch = health_pb2_grpc.HealthStub(it.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert await health_of(it, "") == health_pb2.HealthCheckResponse.SERVING
        assert (await status(health_of(it, "who?")))[0] is grpc.StatusCode.NOT_FOUND
        draining = asyncio.create_task(it.server.drain())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await draining == 0


async def test_a_server_that_loses_its_engine_is_not_healthy_until_it_answers_again(
    local: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEALTH_EVERY_S", 0.01)
    async with local(metrics_port=0) as it:
        watch = health_pb2_grpc.HealthStub(it.channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        it.held.failure = RuntimeError("the device is gone")
        for _ in range(3):
            assert (await status(it.stub.Recommend(REQUEST, timeout=10)))[0] is grpc.StatusCode.UNAVAILABLE
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await get(it.info.metrics_address, "/healthz") == (503, "engine lost\n")
        assert (await get(it.info.metrics_address, "/anything"))[0] == 404
        it.held.failure = None
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert await get(it.info.metrics_address, "/healthz") == (200, "serving\n")


async def test_reflection_tells_the_services_and_the_contract(local: LocalServer) -> None:
    async with local() as it:
        ask = reflection_pb2_grpc.ServerReflectionStub(it.channel).ServerReflectionInfo
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        services, files = [answer async for answer in ask(iter(requests), timeout=10)]
        names = {service.name for service in services.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
        assert b"RecommendStream" in files.file_descriptor_response.file_descriptor_proto[0]


async def test_metrics_count_what_happened(local: LocalServer, transport: str) -> None:
    async with local(metrics_port=0) as it:
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-1", "new", "newer"], depth=8), timeout=10)
        await status(it.stub.Recommend(pb.RecommendRequest(strict=True), timeout=10))
        batch = [REQUEST, pb.RecommendRequest(item_ids=["who?"], strict=True)]
        await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=batch), timeout=10)
        await status(it.channel.unary_unary(f"/{SERVICE}/Recommend")(b"\xff", timeout=10))
        large = bytes(it.server._settings.max_message_mb * 2**20 + 1)
        await status(it.channel.unary_unary(f"/{SERVICE}/GetBundle")(large, timeout=10))
        await status(health_of(it, "who?"))
        check = 'fathom_calls_total{method="Check",status="NOT_FOUND"} 1.0'
        async with asyncio.timeout(30):
            # gRPC's own health service has told its caller before anybody can count it.
            while check not in (text := await metrics_of(it)):
                pass
    for line in (
        'fathom_calls_total{method="Recommend",status="OK"} 1.0',
        'fathom_calls_total{method="Recommend",status="INVALID_ARGUMENT"} 2.0',
        'fathom_calls_total{method="RecommendBatch",status="OK"} 1.0',
        'fathom_call_seconds_count{method="Recommend"} 3.0',
        'fathom_requests_total{bundle="synthetic",depth="8",reason="fixed",status="OK"} 1.0',
        'fathom_requests_total{bundle="",depth="",reason="",status="INVALID_ARGUMENT"} 2.0',
        'fathom_requests_total{bundle="",depth="",reason="",status="NOT_FOUND"} 1.0',
        'fathom_request_seconds_count{bundle="synthetic",depth="8"} 1.0',
        'fathom_engine_seconds_count{bundle="synthetic",depth="8"} 1.0',
        'fathom_batch_size_sum{bundle="synthetic",depth="8"} 1.0',
        "fathom_queue_seconds_count 2.0",
        'fathom_queue_depth{bundle="synthetic"} 0.0',
        "fathom_in_flight 0.0",
        "fathom_unknown_items_total 2.0",
        f'bundle_version="{answer.bundle_version}"',
    ):
        assert line in text
    too_large = 'fathom_calls_total{method="GetBundle",status="RESOURCE_EXHAUSTED"} 1.0'
    assert (too_large in text) == (transport == "http2")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
async def test_a_host_that_is_not_ours_is_an_error_of_one_line(synthetic_bundle: Path, host: str) -> None:
    async with Server(ServerSettings(host=host, port=0), synthetic_bundle) as server:
        with pytest.raises(ConfigError, match=f"^cannot listen on {host}:0: [^\n]*; choose another"):
            await server.start()


async def test_a_taken_port_is_an_error_of_one_line(synthetic_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for settings in (ServerSettings(port=port), ServerSettings(port=0, metrics_port=port)):
            async with Server(settings, synthetic_bundle) as server:
                with pytest.raises(ConfigError, match=f"127.0.0.1:{port}[^\n]*; choose another"):
                    await server.start()


async def test_a_certified_server_says_so_everywhere_and_tells_of_the_alarm(
    local: LocalServer, certified_bundle: Path
) -> None:
    async with local(certified_bundle, metrics_port=0, feedback_share=1.0) as it:
        assert "certified: 75 % depth 4, 25 % depth 16" in str(it.info)
        said = (await it.stub.GetBundle(pb.GetBundleRequest())).routing
        assert (said.policy, said.certified, said.eps) == ("certified: 75 % depth 4, 25 % depth 16", True, 0.05)
        ids = Bundle.open(certified_bundle).catalogue.ids
        async with asyncio.timeout(30):
            number = 0
            while not said.alarm:
                history = [ids[(number * 7 + step * step) % len(ids)] for step in range(18)]
                number += 1
                answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=history))
                assert answer.reason in (pb.DEPTH_REASON_CERTIFIED, pb.DEPTH_REASON_FALLBACK)
                said = (await it.stub.GetBundle(pb.GetBundleRequest())).routing
        assert said.feedback_samples > 0
        assert said.feedback_agreement < said.expected_agreement == 0.9
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=[ids[0]]))
        assert (answer.depth, answer.reason) == (16, pb.DEPTH_REASON_FALLBACK)
        shown = await metrics_of(it)
        assert 'fathom_feedback_alarm{bundle="synthetic"} 1.0' in shown
        assert 'fathom_feedback_expected{bundle="synthetic"} 0.9' in shown


async def test_a_server_whose_requests_have_changed_for_good_certifies_itself_again(
    local: LocalServer, certified_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.selector.recertification.FIRST_ATTEMPT", 100)
    rng = np.random.default_rng(0)

    async with local(certified_bundle, metrics_port=0, feedback_share=1.0, recertify="auto") as it:

        async def ask(length: int) -> pb.RecommendResponse:
            items = [f"item-{item}" for item in rng.integers(0, 50, length)]
            return await it.stub.Recommend(pb.RecommendRequest(item_ids=items))

        async def routing() -> pb.Routing:
            return (await it.stub.GetBundle(pb.GetBundleRequest())).routing

        async with asyncio.timeout(120):
            # Of short histories depth 4 gives the same as depth 16.
            for _ in range(100):
                assert (await ask(4)).reason == pb.DEPTH_REASON_CERTIFIED
            assert not (await routing()).alarm
            while not (said := await routing()).alarm:
                await ask(18)
            assert (await ask(18)).reason == pb.DEPTH_REASON_FALLBACK
            assert (said.recertified, said.recertification_needed) == (0, 100)
            while (said := await routing()).alarm:
                await asyncio.gather(*(ask(18) for _ in range(8)))
            assert (said.recertified, said.recertification_attempts) == (1, 1)
            assert said.policy.startswith("certified again: ")
            assert said.expected_agreement < 0.9
            answers = await asyncio.gather(*(ask(18) for _ in range(20)))
            assert {answer.reason for answer in answers} == {pb.DEPTH_REASON_CERTIFIED}
            drift = (await it.stub.GetBundle(pb.GetBundleRequest())).drift
        assert drift.samples > 100
        assert {"length", "complexity"} <= {each.name for each in drift.features}
        shown = await metrics_of(it)
        assert 'fathom_feedback_alarm{bundle="synthetic"} 0.0' in shown
        assert 'fathom_recertification_succeeded{bundle="synthetic"} 1.0' in shown
        assert 'fathom_drift_alarm{bundle="synthetic",feature="length"}' in shown


async def test_a_server_that_must_be_certified_does_not_start_without(local: LocalServer) -> None:
    with pytest.raises(ConfigError, match="nothing is certified for the depths of profile"):
        async with local(policy="certified"):
            pass
