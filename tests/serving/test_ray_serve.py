"""Fathom on a real Ray Serve, on this machine: two replicas behind Ray's gRPC proxy."""

import asyncio
import itertools
import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import yaml

from fathom.client import Client, Query
from fathom.errors import ConfigError, InvalidRequestError, NotFoundError, UnavailableError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

pytest.importorskip("ray.serve", reason="Ray Serve is not installed here (extra ray)")

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from fathom.benchmarks.ray_cluster import deploy, ray_cluster, replica_processes, running_replicas
from fathom.ray_serve import app
from fathom.ray_serve.autoscaling import BUSY, QUEUE_MS, QueueTime, Report
from fathom.ray_serve.notices import Notices
from fathom.ray_serve.proxy import DEADLINE
from fathom.ray_serve.replica import Recommender, check_serving
from fathom.ray_serve.router import key_of
from fathom.ray_serve.settings import replica_settings
from fathom.ray_serve.transport import RayTransport
from fathom.serving import server as server_module

REPLICAS, SECONDS, MOST_S = 2, 20, 60
ITEMS = ["item-1", "item-2", "item-3"]
# Ray leaves sockets and processes for its own exit.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Running:
    address: str
    repository: Path
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def cluster(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ray")
    repository = folder / "bundles"
    shutil.copytree(synthetic_bundle, repository / "shop" / "1")
    settings = {"replicas": REPLICAS, "history": f"sqlite:{folder / 'history.db'}", "profile": "cloud"}
    with ray_cluster() as address:
        deploy(repository, **settings)
        yield Running(address, repository, settings)


@pytest.fixture
def running(cluster: Running) -> Running:
    """With both replicas, whatever the test before has done to them."""
    until(lambda: running_replicas() == REPLICAS)
    return cluster


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.address) as client:
        yield client


@pytest.fixture
def stub(running: Running) -> Iterator[Any]:
    with grpc.insecure_channel(running.address) as channel:
        yield recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


def until(ready: Any) -> None:
    end_s = time.monotonic() + MOST_S
    while not ready():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def events(*numbers: int) -> list[pb.Event]:
    return [pb.Event(event_id=str(each), item_id=f"item-{each}", timestamp=1_764_446_400 + each) for each in numbers]


def versions_seen(stub: Any) -> set[str]:
    """Of the bundle, asked so often that both replicas answer: calls without a user are spread evenly."""
    return {stub.GetBundle(pb.GetBundleRequest(), timeout=SECONDS).version for _ in range(20)}


def test_the_proxy_answers_as_a_server_does(client: Client) -> None:
    answer = client.recommend(ITEMS, k=3, depth=4)
    assert (answer.depth, answer.reason, len(answer.items)) == (4, "fixed", 3)
    assert not {item.id for item in answer.items} & set(ITEMS)


def test_what_is_wrong_with_a_request_is_said_in_its_own_status(client: Client, stub: Any) -> None:
    with pytest.raises(NotFoundError, match="bundle 'other' is not served; served: shop"):
        client.recommend(ITEMS, bundle="other")
    with pytest.raises(InvalidRequestError, match="experiments"):
        client.experiments()
    with pytest.raises(grpc.RpcError) as found:
        stub.Recommend(pb.RecommendRequest(item_ids=ITEMS, timestamps=[1]), timeout=SECONDS)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "timestamps has 1 values for 3 items" in found.value.details()


def test_a_message_that_cannot_be_decoded_is_refused_by_the_replica(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        for method in ("Recommend", "GetBundle"):
            with pytest.raises(grpc.RpcError) as found:
                channel.unary_unary(f"/fathom.v1.Recommender/{method}")(b"\xff\xff", timeout=SECONDS)
            assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_streams_pass_the_proxy_in_both_directions(stub: Any) -> None:
    requests = [pb.RecommendRequest(item_ids=ITEMS, k=2, depth=4), pb.RecommendRequest(k=0, depth=99)]
    results = list(stub.RecommendStream(iter(requests), timeout=SECONDS))
    assert sorted(each.WhichOneof("outcome") for each in results) == ["error", "response"]
    uploads = [pb.AppendEventsRequest(user_id="streamed", events=events(each)) for each in (1, 2, 3)]
    assert stub.AppendEventStream(iter(uploads), timeout=SECONDS).appended == 3


def test_replicas_share_histories_and_forget_users_together(stub: Any) -> None:
    stub.AppendEvents(pb.AppendEventsRequest(user_id="ann", events=events(1, 2)), timeout=SECONDS)
    request = pb.RecommendRequest(user_id="ann", k=2)
    used = {
        stub.Recommend(request, timeout=SECONDS, metadata=(("session_id", str(each)),)).history_used
        for each in range(10)
    }
    assert used == {2}
    deleted = stub.DeleteUser(pb.DeleteUserRequest(user_id="ann"), timeout=SECONDS)
    assert (deleted.deleted, deleted.workers_behind) == (2, 0)


def test_a_reload_reaches_all_replicas(running: Running, stub: Any, make_bundle: Any) -> None:
    (before,) = versions_seen(stub)
    shutil.copytree(make_bundle(strategy="nested"), running.repository / "shop" / "2")
    stub.Reload(pb.ReloadRequest(), timeout=MOST_S)
    wanted = json.loads((running.repository / "shop" / "2" / "manifest.json").read_text())["version"]
    assert wanted != before
    until(lambda: versions_seen(stub) == {wanted})


def test_replicas_are_replaced_without_a_failed_request(running: Running) -> None:
    before, failed, answered, stop = set(replica_processes()), [], itertools.count(), threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(running.address, options=(("grpc.enable_retries", 0),)) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            while not stop.is_set():
                try:
                    stub.Recommend(pb.RecommendRequest(item_ids=ITEMS, k=2), timeout=SECONDS)
                    next(answered)
                except grpc.RpcError as error:
                    failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        deploy(running.repository, **running.settings, version=time.time_ns())
    finally:
        stop.set()
        asking.join()
    assert not failed
    assert next(answered) > 10
    assert not before & set(replica_processes())


@pytest.mark.slow
def test_replicas_are_added_while_requests_wait_and_given_back_when_none_do(running: Running) -> None:
    policy = {"policy_function": "fathom.ray_serve.autoscaling:QueueTime", "policy_kwargs": {"target_ms": 0.5}}
    deploy(
        running.repository,
        autoscaling={
            **{"min_replicas": 1, "max_replicas": 2, "metrics_interval_s": 0.2, "look_back_period_s": 1},
            **{"upscale_delay_s": 0.5, "downscale_delay_s": 1, "policy": policy},
        },
        **running.settings,
    )
    until(lambda: running_replicas() == 1)
    stop = threading.Event()
    many = [Query([f"item-{number % 50}", f"item-{number // 50}"], depth=16) for number in range(1_000)]

    def ask() -> None:
        with Client(running.address) as client:
            while not stop.is_set():
                client.recommend_many(many, timeout_s=SECONDS)

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            until(lambda: running_replicas() == 2)
        finally:
            stop.set()
    assert [each.result() for each in asking] == [None, None]
    until(lambda: running_replicas() == 1)
    deploy(running.repository, **running.settings)


def context_of(queue_ms: list[float], busy: list[float]) -> AutoscalingContext:
    replicas = [ReplicaID(str(number), DeploymentID("Recommender")) for number in range(len(busy))]
    reports = {QUEUE_MS: dict(zip(replicas, queue_ms, strict=True)), BUSY: dict(zip(replicas, busy, strict=True))}
    return AutoscalingContext(
        deployment_id=DeploymentID("Recommender"),
        deployment_name="Recommender",
        app_name="fathom",
        total_num_requests=0,
        total_queued_requests=0,
        raw_metrics=None,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
        current_num_replicas=len(busy),
        target_num_replicas=3,
        running_replicas=replicas,
        aggregated_metrics=lambda: reports if busy else {},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=100,
        policy_state={},
    )


@pytest.mark.parametrize(
    ("queue_ms", "busy", "wanted"),
    [
        ([], [], 3),  # nothing is known yet
        ([0, 0], [0, 0], 1),
        ([12, 12], [0.5, 0.5], 2),  # between half of the target and the target
        ([25, 25, 25, 25], [0.5, 0.5, 0.5, 0.5], 5),
        ([32, 12], [0.5, 0.5], 3),  # the mean counts
        ([4_000], [0.9], 2),
        ([0, 0, 0], [1, 1, 1], 5),  # who did not wait for a full engine got depth 0
        ([1, 1, 1, 1], [0.6, 0.6, 0.6, 0.6], 4),  # the work of four fits into no fewer
        ([1, 1, 1, 1], [0.3, 0.3, 0.3, 0.3], 2),
    ],
)
def test_replicas_follow_the_time_in_the_queue_and_what_engines_have_room_for(
    queue_ms: list[float], busy: list[float], wanted: int
) -> None:
    assert QueueTime(target_ms=20)(context_of(queue_ms, busy)) == (wanted, {})


@pytest.mark.parametrize("target_ms", [0, -1, float("inf"), float("nan"), "20", True])
def test_a_target_that_cannot_be_is_refused(target_ms: Any) -> None:
    with pytest.raises(ConfigError, match="give a positive number of milliseconds"):
        QueueTime(target_ms)


async def test_a_replica_reports_what_has_happened_since_its_last_report(local: Any) -> None:
    report = Report()
    async with local(metrics_port=0) as it:
        assert report.next(*it.server.work()) == {QUEUE_MS: 0, BUSY: 0}
        it.held.go.clear()
        asking = [
            asyncio.ensure_future(it.stub.Recommend(pb.RecommendRequest(item_ids=["item-1"], depth=4), timeout=SECONDS))
            for _ in range(2)
        ]
        await asyncio.to_thread(it.held.reached.acquire)
        await asyncio.sleep(0.05)
        it.held.go.set()
        await asyncio.gather(*asking)
        said = report.next(*it.server.work())
        assert said[QUEUE_MS] > 0
        assert 0.1 < said[BUSY] <= 1
        assert report.next(*it.server.work()) == {QUEUE_MS: 0, BUSY: 0}


def test_a_killed_replica_is_no_matter_to_a_client_that_tries_again(client: Client) -> None:
    killed, *_ = before = replica_processes()
    os.kill(killed, signal.SIGKILL)
    for number in range(100):
        assert client.recommend([*ITEMS, f"item-{number % 30 + 1}"], k=2, timeout_s=SECONDS).items
    until(lambda: set(replica_processes()) - set(before))


async def test_a_replica_without_an_engine_is_not_healthy(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEALTH_EVERY_S", 0.01)
    async with local() as it:
        check_serving(it.server)
        it.held.failure = RuntimeError("the device is gone")
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-1"], depth=4), timeout=SECONDS)
        async with asyncio.timeout(SECONDS):
            while it.server.state == "serving":
                await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="engine lost"):
            check_serving(it.server)


async def test_the_deadline_that_the_proxy_saw_holds_in_the_replica() -> None:
    left: list[float] = []

    def take(calls: Any, refused: int) -> None:  # noqa: ARG001
        for each in calls:
            left.append(each.deadline_s - time.monotonic())
            each.fail(grpc.StatusCode.NOT_FOUND, "nothing", (("grpc-retry-pushback-ms", "7"),))

    transport, context = RayTransport(), RayContext([("a", "b"), (DEADLINE, str(time.time() + 5))])
    transport.take_calls("/fathom.v1.Recommender/Recommend", take)
    assert await transport.unary("Recommend", b"", context) == b""
    assert 4.5 < left[0] <= 5
    assert (context.status, context.trailing) == (grpc.StatusCode.NOT_FOUND, [("grpc-retry-pushback-ms", "7")])


class RayContext:
    """The part of Ray's context that a replica sees."""

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata
        self.status, self.text, self.trailing = None, "", []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def set_code(self, status: Any) -> None:
        self.status = status

    def set_details(self, text: str) -> None:
        self.text = text

    def set_trailing_metadata(self, trailing: Any) -> None:
        self.trailing = trailing


def test_a_replica_answers_every_method_of_the_contract() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name
    assert [name for name in methods if not callable(getattr(Recommender, name, None))] == []


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (pb.RecommendRequest(user_id="ann"), "ann"),
        (pb.RecommendRequest(item_ids=["a"], session_id="visit"), "visit"),
        (pb.RecommendRequest(item_ids=["a", "b", "c", "d", "e"]), "a\nb\nc\nd"),
        (pb.RecommendRequest(), ""),
    ],
)
def test_requests_of_a_user_have_one_key_while_the_history_grows(request_: pb.RecommendRequest, key: str) -> None:
    grpc_request = pickle.dumps(SimpleNamespace(user_request_proto=request_.SerializeToString()))
    assert key_of("Recommend", (grpc_request,)) == key
    assert key_of("GetBundle", (grpc_request,)) == ""
    assert key_of("Recommend", (pickle.dumps(SimpleNamespace(user_request_proto=b"\xff")),)) == ""


async def test_notices_reach_every_other_replica_and_tell_who_is_behind() -> None:
    notices = Notices()
    first, second = await asyncio.gather(notices.wait("b", -1), notices.wait("c", -1))
    assert not first[1]
    assert not second[1]
    waiting = asyncio.create_task(notices.wait("b", first[0]))
    telling = asyncio.create_task(notices.tell("a", "forget", "ann"))
    number, (notice,) = await waiting
    assert (notice.what, notice.name) == ("forget", "ann")
    confirming = asyncio.create_task(notices.wait("b", number))
    assert await telling == 1  # c has not asked again
    confirming.cancel()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"port": 1, "insecure": True}, "port: not with Ray Serve: the proxy has the port"),
        ({"workers": 2, "insecure": True}, "workers: not with Ray Serve: say num_replicas"),
        ({"history": "memory", "insecure": True}, "history: replicas do not share memory"),
        ({}, "without `access`, whoever reaches it"),
        ({"max_queu": 1, "insecure": True}, "unknown setting; did you mean --max-queue?"),
    ],
)
def test_settings_that_a_replica_cannot_have_are_refused(given: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        replica_settings(given, 2)


@pytest.mark.parametrize(
    ("given", "what"),
    [({}, "bundle: give"), ({"replicas": 0}, "replicas: 0 is not"), ({"affinity": "yes"}, "affinity: yes is not")],
)
def test_arguments_of_the_application_are_checked(given: dict[str, object], what: str, tmp_path: Path) -> None:
    bundle = {"bundle": str(tmp_path)} if given else {}
    with pytest.raises(ConfigError, match=what):
        app({**bundle, "insecure": True, **given})


def test_the_example_is_a_config_of_ray_serve() -> None:
    example = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml").read_text())
    (application,) = ServeDeploySchema(**example).applications
    assert application.import_path == "fathom.ray_serve:app"
    assert example["grpc_options"]["grpc_servicer_functions"] == ["fathom.ray_serve:add_recommender"]
    built = app(application.args)
    assert [each.name for each in application.deployments] == [built._bound_deployment.name]
    policy = application.deployments[0].autoscaling_config["policy"]
    assert AutoscalingPolicy(**policy).get_policy()(**policy["policy_kwargs"]).wanted(2, 50, 0.5) == 4
