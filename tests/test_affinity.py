"""Clients of several servers: a user's calls go to the one that remembers, and on when it is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fathom.client import AsyncClient, Client, Query, Recommendation
from fathom.client.affinity import ATTEMPTS, LEAST_BOUND, Backend, Backends, hash_of, key_of
from fathom.client.channels import SERVICE
from fathom.client.names import Names as ClientNames
from fathom.client.names import Place, places_of
from fathom.errors import ConfigError, ConnectError
from fathom.local import Local, running_server
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

USERS = [f"user-{number}" for number in range(4_000)]
Servers = dict[str, Local]


def backends(*names: str) -> Backends:
    found = Backends()
    found.become(names, lambda name: Backend(name, name, None, None))
    return found


def shares(among: Backends) -> dict[str, str]:
    return {user: among.first(user).name for user in USERS}  # type: ignore[union-attr]


@pytest.mark.parametrize("before", [1, 2, 3, 10, 50])
def test_a_new_server_takes_an_equal_share_of_users_and_no_other_user_moves(before: int) -> None:
    names = [f"10.0.0.{number}:50051" for number in range(before + 1)]
    old, new = shares(backends(*names[:-1])), shares(backends(*names))
    moved = [user for user in USERS if old[user] != new[user]]
    assert {new[user] for user in moved} == {names[-1]}
    # Within four standard deviations of what chance gives.
    share = len(USERS) / (before + 1)
    for count in (len(moved), *Counter(new.values()).values()):
        assert count == pytest.approx(share, abs=4 * share**0.5)


def test_all_processes_choose_the_same_server() -> None:
    program = (
        "from fathom.client.affinity import *; b = Backends();"
        "b.become(['a:1', 'b:1', 'c:1'], lambda n: Backend(n, n, None, None));"
        "print(*(b.first(f'user-{n}').name for n in range(50)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    here = backends("c:1", "b:1", "a:1")
    assert done.stdout.split() == [here.first(user).name for user in USERS[:50]]  # type: ignore[union-attr]


def test_a_key_is_the_user_the_session_or_the_oldest_items() -> None:
    request = pb.RecommendRequest
    assert key_of(request(user_id="u", session_id="s")) == "u"
    assert key_of(request(session_id="s", item_ids=["a"])) == "s"
    history = ["a", "b", "c", "d", "e"]
    assert key_of(request(item_ids=history)) == key_of(request(item_ids=[*history, "f"])) == "a\nb\nc\nd"
    assert key_of(pb.AppendEventsRequest(user_id="u")) == key_of(pb.DeleteUserRequest(user_id="u")) == "u"
    assert key_of(pb.RecommendBatchRequest(requests=[request(user_id="u"), request(user_id="v")])) == "u"
    assert key_of(pb.GetBundleRequest()) == ""


def test_a_busy_server_passes_on_what_is_beyond_its_bound() -> None:
    among = backends("a:1", "b:1", "c:1")
    first = among.first("one")
    taken = [among.take("one") for _ in range(60)]
    assert taken[:LEAST_BOUND] == [first] * LEAST_BOUND
    assert max(Counter(taken).values()) <= 1.5 * (60 + 1) / 3 + 1
    assert len(set(taken)) >= 2
    for each in taken:
        among.release(each)  # type: ignore[arg-type]
    assert among.take("one") is first


def test_a_call_without_a_key_goes_anywhere() -> None:
    among = backends("a:1", "b:1", "c:1")
    assert len({among.take("") for _ in range(LEAST_BOUND)} | {among.take("") for _ in range(30)}) == 3


def test_a_server_that_is_gone_is_passed_over_unless_all_are() -> None:
    among = backends("a:1", "b:1")
    first = among.first("one")
    assert first is not None
    first.usable = False
    second = among.take("one")
    assert second is not first
    assert second is not None
    second.usable = False
    assert among.take("one") is first


def test_a_failed_call_goes_to_another_server_before_another_connection() -> None:
    among = Backends()
    among.become(
        [f"{server}#{number}" for server in "ab" for number in range(4)], lambda n: Backend(n[0], n, None, None)
    )
    tried = [among.take("one")]
    tried.append(among.take("one", tried))  # type: ignore[arg-type]
    assert {each.target for each in tried if each} == {"a", "b"}
    for _ in range(6):
        tried.append(among.take("one", tried))  # type: ignore[arg-type]
    assert set(tried) == set(among.all)


def test_places_of_names_are_addresses_and_of_others_themselves() -> None:
    for target in ("127.0.0.1:5", "[::1]:5", "unix:/tmp/s", "dns:///127.0.0.1:6"):
        assert places_of(target) == {target: Place(target)}
    for name in ("localhost:5", "dns:///localhost:5"):
        assert places_of(name)["127.0.0.1:5"] == Place("127.0.0.1:5", "localhost")


def test_a_name_that_cannot_be_looked_up_stands_for_what_it_stood_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    known = ClientNames(["shop.test:1", "127.0.0.1:2", "nowhere.test:3"])
    assert set(known.look_up()) == {"127.0.0.1:2"}
    names.addresses = ["10.0.0.1", "10.0.0.2"]
    assert set(known.look_up()) == {"10.0.0.1:1", "10.0.0.2:1", "127.0.0.1:2"}
    names.addresses = []
    assert set(known.look_up()) == {"10.0.0.1:1", "10.0.0.2:1", "127.0.0.1:2"}
    names.addresses = ["10.0.0.2"]
    assert set(known.look_up()) == {"10.0.0.2:1", "127.0.0.1:2"}


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ([], "target is an empty list"),
        ([7], "target has 7 (int)"),
        (["h:1", "h"], "target 'h' has no port"),
        ({"h:1"}, "target is a set; give a list"),
    ],
)
async def test_a_list_of_targets_that_names_no_servers_is_refused(targets: Any, says: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError) as caught:
            kind(targets)
        assert str(caught.value).startswith(says)


@pytest.fixture(scope="module")
def bundles(make_bundle: Callable[..., Path]) -> list[Path]:
    """Of four versions, by which one sees who has answered."""
    return [make_bundle(counting_weight=weight) for weight in (0.0, 0.01, 0.02, 0.03)]


@pytest.fixture
def servers(bundles: list[Path]) -> Iterator[Servers]:
    """Three real servers, by the version that they answer with."""
    with ExitStack() as stack:
        yield {
            version_of(server): server
            for server in [stack.enter_context(running_server(each, "--metrics-port", "0")) for each in bundles[:3]]
        }


def version_of(server: Local) -> str:
    with Client(server.address) as client:
        return client.bundle().version


def targets_of(servers: Servers) -> list[str]:
    return [server.address for server in servers.values()]


def history_of(user: int) -> list[str]:
    """Of 50 items; the first four are a user's own."""
    return [f"item-{(user * 7 + step * (user % 5 + 1)) % 50}" for step in range(10)]


def versions(client: Client, users: range) -> list[str]:
    return [client.recommend(history_of(user), depth=16, timeout_s=20).bundle_version for user in users]


def test_returning_users_find_their_server_however_they_are_asked_for(servers: Servers) -> None:
    users = range(40)
    with Client(targets_of(servers)) as client, Client(list(reversed(targets_of(servers)))) as another:
        first = versions(client, users)
        assert set(first) == set(servers)
        assert versions(another, users) == first
        queries = [Query(history_of(user), depth=16) for user in users]
        for answers in (client.recommend_many(queries), list(client.recommend_all(iter(queries)))):
            assert [answer.bundle_version for answer in answers] == first  # type: ignore[union-attr]


def answered_from_the_cache(server: Local) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("fathom_reused_total{") and "vector" in line
    )


def test_returning_users_find_their_history_in_the_cache(tiny_build: Path) -> None:
    options = ("--metrics-port", "0", "--reuse-mb", "16")
    with ExitStack() as stack:
        started = [stack.enter_context(running_server(tiny_build / "bundle", *options)) for _ in range(2)]
        with Client([server.address for server in started]) as client:
            for _ in range(3):
                for user in range(30):
                    client.recommend([f"i{(user + step * 3) % 40}" for step in range(8)], depth=16, timeout_s=20)
        found = list(map(answered_from_the_cache, started))
    assert min(found) > 0
    assert sum(found) == 2 * 30


def test_only_the_users_of_a_killed_server_move_and_no_call_fails(servers: Servers) -> None:
    users = range(40)
    with Client(targets_of(servers)) as client:
        before = versions(client, users)
        killed = before[0]
        os.kill(servers[killed].pid, signal.SIGKILL)
        after = versions(client, users)
        many = client.recommend_many([Query(history_of(user)) for user in users], timeout_s=20)
    for old, new in zip(before, after, strict=True):
        assert new == old if old != killed else new in set(servers) - {killed}
    assert [answer.bundle_version for answer in many if isinstance(answer, Recommendation)] == after


async def test_the_async_client_does_the_same(servers: Servers) -> None:
    users = range(40)
    async with AsyncClient(targets_of(servers)) as client:

        async def ask() -> list[str]:
            answers = [await client.recommend(history_of(user), timeout_s=20) for user in users]
            return [answer.bundle_version for answer in answers]

        before = await ask()
        with Client(targets_of(servers)) as blocking:
            assert versions(blocking, users) == before
        queries = [Query(history_of(user)) for user in users]
        assert [answer.bundle_version async for answer in client.recommend_all(queries)] == before  # type: ignore[union-attr]
        killed = before[0]
        os.kill(servers[killed].pid, signal.SIGKILL)
        after = await ask()
        many = await client.recommend_many(queries, timeout_s=20)
    assert [new for old, new in zip(before, after, strict=True) if old != killed] == [
        old for old in before if old != killed
    ]
    assert [answer.bundle_version for answer in many] == after  # type: ignore[union-attr]
    assert killed not in after


class Names:
    """What a name stands for, as DNS would say it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)
        for kind in ("blocking", "asynchronous"):
            monkeypatch.setattr(f"fathom.client.{kind}.LOOK_UP_S", 0.05)
            monkeypatch.setattr(f"fathom.client.{kind}.AGAIN_S", 0.05)

    def _answer(self, host: str, port: int, *args: Any, **more: Any) -> Any:
        if not host.endswith(".test"):
            return self._ask(host, port, *args, **more)
        if host != "shop.test" or not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def test_a_server_that_is_added_to_a_name_takes_its_share(bundles: list[Path], names: Names) -> None:
    users = range(60)
    with running_server(bundles[0], "--host", "127.0.0.1") as one:
        port = one.address.rpartition(":")[2]
        second = ["--host", "127.0.0.2", "--port", port, "--insecure"]
        with running_server(bundles[1], *second) as two, Client(f"dns:///shop.test:{port}", affinity=True) as client:
            with pytest.raises(ConnectError, match=r"shop\.test:\d+: the name cannot be looked up: Name or service"):
                client.recommend(["item-1"], timeout_s=0.3)
            names.addresses = ["127.0.0.1"]
            assert set(versions(client, users)) == {version_of(one)}
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            until(lambda: len(set(versions(client, users))) == 2)
            after = versions(client, users)
            assert after.count(version_of(two)) / len(users) == pytest.approx(1 / 2, abs=0.25)
            names.addresses = ["127.0.0.2"]
            until(lambda: set(versions(client, users)) == {version_of(two)})
            names.addresses = []
            assert set(versions(client, users)) == {version_of(two)}


def test_no_call_fails_while_a_server_drains(servers: Servers) -> None:
    users = range(40)
    with Client(targets_of(servers)) as client:
        before = versions(client, users)
        drained = before[0]
        os.kill(servers[drained].pid, signal.SIGTERM)
        after = versions(client, users)
    for old, new in zip(before, after, strict=True):
        assert new == old or old == drained


class Named(recommender_pb2_grpc.RecommenderServicer):
    def __init__(self, name: str) -> None:
        self.name = name

    def Recommend(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        return pb.RecommendResponse(bundle_version=self.name)


def until(found: Callable[[], bool]) -> None:
    """Ask again until it is so; a test that waits for what never comes fails."""
    for _ in range(5_000):
        if found():
            return
    raise AssertionError


async def test_a_server_that_says_it_does_not_serve_is_passed_over_until_it_does() -> None:
    with ExitStack() as stack:
        states, targets = {}, []
        for name in ("one", "two"):
            server = grpc.server(ThreadPoolExecutor(8))
            stack.callback(lambda server=server: server.stop(None).wait())
            states[name] = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(states[name], server)
            recommender_pb2_grpc.add_RecommenderServicer_to_server(Named(name), server)  # type: ignore[no-untyped-call]
            targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            states[name].set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
            server.start()
        client = stack.enter_context(Client(targets))

        def asked() -> str:
            return client.recommend(["item-1"]).bundle_version

        first = asked()
        states[first].set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        until(lambda: asked() != first)
        assert {asked() for _ in range(20)} == {"one", "two"} - {first}
        states[first].set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        until(lambda: asked() == first)
        assert {asked() for _ in range(20)} == {first}
        async with AsyncClient(targets) as other:
            states[first].set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
            for _ in range(5_000):
                if (await other.recommend(["item-1"])).bundle_version != first:
                    break
            assert (await other.recommend(["item-1"])).bundle_version != first


@pytest.mark.parametrize(("name", "fits"), [("shop.test", True), ("other.test", False)])
def test_over_tls_the_certificate_must_be_for_the_name(
    bundles: list[Path], names: Names, tmp_path: Path, name: str, fits: bool
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue(name)
    names.addresses = ["127.0.0.1"]
    with (
        running_server(bundles[0], "--tls-cert", str(certificate), "--tls-key", str(key)) as server,
        Client(f"shop.test:{server.address.rpartition(':')[2]}", affinity=True, tls=authority.ca) as client,
    ):
        if fits:
            assert client.recommend(["item-1"], timeout_s=20).items
        else:
            with pytest.raises(ConnectError, match="no answer"):
                client.recommend(["item-1"], timeout_s=20)


def test_closing_waits_for_the_thread_in_which_grpc_watches_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fails with a traceback where its channel is closed between two looks (grpc/grpc#18995)."""
    watching: list[threading.Thread] = []
    between_looks, closed = threading.Event(), threading.Event()

    class Clock:
        """Which gRPC asks just before it looks."""

        @staticmethod
        def time() -> float:
            if sys._getframe(1).f_code.co_name == "_poll_connectivity":
                watching.append(threading.current_thread())
                between_looks.set()
                closed.wait(0.3)
            return time.time()

    monkeypatch.setattr("grpc._channel.time", Clock)
    with Client("127.0.0.1:1", affinity=True):
        assert between_looks.wait(20)
    closed.set()
    for each in watching:
        each.join(20)
        assert not each.is_alive()


async def test_the_async_client_looks_names_up_too(bundles: list[Path], names: Names) -> None:
    with running_server(bundles[0]) as server:
        target = f"shop.test:{server.address.rpartition(':')[2]}"
        async with AsyncClient(target, affinity=True) as client:
            with pytest.raises(ConnectError, match=r"shop\.test:\d+: the name cannot be looked up: Name or service"):
                await client.recommend(["item-1"], timeout_s=0.3)
            names.addresses = ["127.0.0.1"]
            assert (await client.recommend(["item-1"], timeout_s=20)).items


def test_where_all_are_gone_a_call_ends_after_some_attempts() -> None:
    with Client(["127.0.0.1:1", "127.0.0.1:2"]) as client, pytest.raises(ConnectError, match=r"127\.0\.0\.1:[12]: no"):
        client.recommend(["a"])
    assert ATTEMPTS == 4


def test_several_connections_to_one_server_are_as_several_servers(servers: Servers) -> None:
    """So that a user stays with one of several workers, between which the kernel spreads connections."""
    version, server = next(iter(servers.items()))
    with Client(server.address, affinity=True, channels=4) as client:
        names = {each.name for each in client._backends.all}
        assert names == {f"{server.address}#{number}" for number in range(4)}
        assert set(versions(client, range(8))) == {version}
    assert hash_of(f"{server.address}#0") != hash_of(f"{server.address}#1")
