"""HTTP and JSON beside gRPC: the same answers, errors, callers and limits."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from certificates import Authority
from fake_engine import FakeEngine

from fathom.client import AsyncClient
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.keys import new_key
from fathom.serving.config import ServerSettings
from fathom.serving.http import port as port_module
from fathom.serving.http.rules import http_rules
from fathom.serving.server import Server

JSON = {"Content-Type": "application/json"}
HISTORY = ["item-1", "item-2"]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


class Caller:
    """Sends requests, each over a connection of its own."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        self.address, self._tls = address, tls

    async def __call__(self, verb: str, path: str, body: Any = None, /, **headers: str) -> Answer:
        sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(self._ask, verb, path, sent, (JSON if sent is not None else {}) | named)

    def _ask(self, verb: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        host, _, port = self.address.rpartition(":")
        secure = {} if self._tls is None else {"context": self._tls}
        connection = (HTTPConnection if self._tls is None else HTTPSConnection)(host, int(port), timeout=20, **secure)
        try:
            connection.request(verb, path, body, headers)
            answer = connection.getresponse()
            text, kind = answer.read(), answer.headers.get("Content-Type", "")
            return Answer(answer.status, dict(answer.headers), json.loads(text) if "json" in kind and text else text)
        finally:
            connection.close()


@asynccontextmanager
async def serving(
    path: Path, *, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[Caller, Any]]:
    stores = {"history": "memory", "catalogue": "memory"}
    async with Server(ServerSettings(port=0, http_port=0, **stores, **settings), path) as server:
        info = await server.start()
        assert info.http_address is not None
        yield Caller(info.http_address, tls), info


@pytest.fixture
async def asked(synthetic_bundle: Path) -> AsyncIterator[tuple[Caller, Any]]:
    async with serving(synthetic_bundle) as found:
        yield found


def test_every_method_with_one_answer_has_a_rule_and_its_variables_are_fields() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name
    rules = http_rules()
    unary = {name for name, each in methods.items() if not (each.client_streaming or each.server_streaming)}
    assert {rule.method for rule in rules} == unary
    assert len({(rule.verb, rule.path) for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule.variables) <= set(methods[rule.method].input_type.fields_by_name)
        assert rule.has_body == (rule.verb == "POST")


async def test_the_answer_is_the_one_that_grpc_gives(asked: tuple[Caller, Any]) -> None:
    call, info = asked
    async with AsyncClient(info.address) as client:
        expected = await client.recommend(HISTORY, k=5, depth=8)
    for request in (
        {"itemIds": HISTORY, "k": 5, "depth": 8, "includeTitles": True, "requestId": "r"},
        {"item_ids": HISTORY, "k": 5, "depth": 8, "include_titles": True, "request_id": "r"},
    ):
        status, headers, body = await call("POST", "/v1/recommend", request)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert [(item["id"], item.get("title", "")) for item in body["items"]] == [
            (i.id, i.title) for i in expected.items
        ]
        assert [item["score"] for item in body["items"]] == pytest.approx([item.score for item in expected.items])
        assert (body["depth"], body["reason"], body["requestId"]) == (8, "DEPTH_REASON_FIXED", "r")


async def test_a_user_lives_from_events_to_deletion(asked: tuple[Caller, Any]) -> None:
    call, _ = asked
    events = [{"eventId": str(n), "itemId": f"item-{n}", "timestamp": str(100 + n), "type": "view"} for n in range(3)]
    user = "/v1/users/" + quote("a/b c", safe="")
    assert (await call("POST", f"{user}/events", {"events": events})).body == {"appended": 3}
    answer = await call(
        "GET", f"{user}/recommendations?k=4&filter.includeSeen=true&filter.excludeItemIds=item-9&depth=4"
    )
    assert answer.status == 200, answer.body
    assert (len(answer.body["items"]), answer.body["historyUsed"], answer.body["depth"]) == (4, 3, 4)
    assert (await call("DELETE", user)).body == {"deleted": 3}
    again = await call("GET", f"{user}/recommendations?strict=true")
    assert (again.status, again.body["status"]) == (404, "NOT_FOUND")


async def test_the_catalogue_bundles_and_batches_are_there_too(asked: tuple[Caller, Any]) -> None:
    call, _ = asked
    item = {"id": "new", "title": "New", "similarItemIds": ["item-1"]}
    assert (await call("POST", "/v1/items", {"items": [item]})).body["added"] == 1
    assert [each["item"]["id"] for each in (await call("GET", "/v1/items?pageSize=5")).body["items"]] == ["new"]
    assert (await call("POST", "/v1/items:remove", {"itemIds": ["new"]})).body["removed"] == 1
    assert (await call("GET", "/v1/bundle")).body["name"] == "synthetic"
    assert (await call("GET", "/v1/bundles/nothing")).status == 404
    assert [each["version"] for each in (await call("POST", "/v1/bundles:reload", {})).body["bundles"]]
    results = (await call("POST", "/v1/recommend:batch", {"requests": [{"itemIds": HISTORY}, {"k": 5_000}]})).body
    assert [next(iter(each)) for each in results["results"]] == ["response", "error"]


@pytest.mark.parametrize(
    ("verb", "path", "body", "headers", "status", "text"),
    [
        ("POST", "/v1/recommend", b"{", {}, 400, "the body is no JSON of RecommendRequest"),
        ("POST", "/v1/recommend", b"\xff", {}, 400, "the body is no JSON of RecommendRequest"),
        ("POST", "/v1/recommend", b"[" * 10_000, {}, 400, "the body is no JSON of RecommendRequest"),
        ("POST", "/v1/recommend", {"itemIdz": []}, {}, 400, "itemIdz"),
        ("POST", "/v1/recommend", {"itemIds": HISTORY}, {"Content_Type": "text/plain"}, 400, "must be JSON"),
        ("POST", "/v1/recommend", {"itemIds": HISTORY, "k": 2_000}, {}, 400, "k is 2000"),
        ("POST", "/v1/recommend", {"itemIds": ["x" * 600_000]}, {}, 400, "at most 524,288"),
        ("POST", "/v1/recommend", {"itemIds": ["x" * 5_000_000]}, {}, 400, "more than 4,194,304 bytes"),
        ("POST", "/v1/recommend", {"itemIds": HISTORY, "depth": 7}, {}, 404, "depth 7"),
        ("POST", "/v1/recommend", {"itemIds": HISTORY}, {"grpc_timeout": "soon"}, 400, "grpc-timeout is no time"),
        ("POST", "/v1/recommend", {"itemIds": HISTORY, "depth": 16}, {"grpc_timeout": "1n"}, 504, "deadline"),
        ("GET", "/v1/users/ann/recommendations?nothing=1", None, {}, 400, "nothing is no field of RecommendRequest"),
        ("GET", "/v1/users/ann/recommendations?k=ten", None, {}, 400, "k is 'ten', which is no value of it"),
        ("GET", "/v1/users/ann/recommendations?k=-1", None, {}, 400, "k is '-1', which is no value of it"),
        ("GET", "/v1/users/ann/recommendations?strict=maybe", None, {}, 400, "strict is 'maybe'"),
        ("GET", "/v1/users/ann/recommendations?filter=x", None, {}, 400, "send it in the body of a POST"),
        ("GET", "/v1/users/ann/recommendations?k.x=1", None, {}, 400, "k.x is no field"),
        ("GET", "/v1/users/ann/recommendations?userId=bob", None, {}, 400, "user_id is in the path"),
        ("GET", "/v1/users/ann/recommendations?user_id=bob", None, {}, 400, "user_id is in the path"),
        ("GET", "/v1/bundle", {"a": 1}, {}, 400, "takes no body"),
        ("DELETE", "/v1/users/" + "x" * 200, None, {}, 400, "user_id has 200 bytes"),
    ],
)
async def test_a_mistake_gets_a_status_and_one_line(
    asked: tuple[Caller, Any], verb: str, path: str, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    answer = await asked[0](verb, path, body, **headers)
    assert answer.status == status, answer
    assert text in answer.body["message"]
    assert "\n" not in answer.body["message"]
    assert set(answer.body) == {"code", "status", "message"}


async def test_what_is_no_route_is_no_method(asked: tuple[Caller, Any]) -> None:
    call, _ = asked
    assert [(await call(*each)).status for each in (("GET", "/"), ("GET", "/v1/recommend"), ("PUT", "/v1/items"))] == [
        404,
        405,
        405,
    ]
    assert (await call("GET", "/healthz")).status == 200


async def test_a_page_of_another_origin_cannot_use_a_server_without_access_control(asked: tuple[Caller, Any]) -> None:
    call, _ = asked
    rebound = await call("POST", "/v1/recommend", {"itemIds": HISTORY}, Host="evil.example.org")
    assert rebound.status == 400
    simple = await call(
        "POST", "/v1/recommend", b'{"itemIds": ["item-1"]}', Content_Type="text/plain", Origin="https://evil"
    )
    assert simple.status == 400
    asks = {"Origin": "https://evil", "Access_Control_Request_Method": "POST"}
    assert (await call("OPTIONS", "/v1/recommend", **asks)).status == 405
    assert "access-control-allow-origin" not in (await call("GET", "/v1/bundle", Origin="https://evil")).headers


async def test_pages_of_the_origins_that_are_named_may_call(synthetic_bundle: Path) -> None:
    async with serving(synthetic_bundle, http_origins=("https://shop.example.org",)) as (call, _):
        asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        good, bad = [
            await call("OPTIONS", "/v1/recommend", Origin=o, **asks)
            for o in ("https://shop.example.org", "https://evil")
        ]
        assert (good.status, good.headers["access-control-allow-origin"]) == (200, "https://shop.example.org")
        assert bad.status == 400


async def test_keys_roles_limits_and_the_admin_port_hold_here_too(synthetic_bundle: Path, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("web", "boss")}
    (tmp_path / "access.yaml").write_text(
        f"keys:\n  - {{name: web, sha256: {keys['web'].sha256!r}, roles: [recommend], rate: 0.01, burst: 2}}\n"
        f"  - {{name: boss, sha256: {keys['boss'].sha256!r}, roles: [admin]}}\n"
    )
    authority = Authority(tmp_path / "pki")
    certificate, key = authority.issue("server")
    options = {"access": tmp_path / "access.yaml", "tls_cert": certificate, "tls_key": key, "audit": tmp_path / "audit"}
    tls = ssl.create_default_context(cafile=str(authority.ca))
    web, boss = ({"Authorization": f"Bearer {each.text}"} for each in keys.values())
    async with serving(synthetic_bundle, tls=tls, **options) as (call, info):
        assert f"https://{info.http_address}" in str(info)
        nobody = await call("POST", "/v1/recommend", {"itemIds": HISTORY})
        assert (nobody.status, nobody.headers["www-authenticate"]) == (401, "Bearer")
        assert (await call("DELETE", "/v1/users/ann", **web)).status == 403
        assert (await call("DELETE", "/v1/users/ann", **boss)).body == {}
        found = [await call("POST", "/v1/recommend", {"itemIds": HISTORY}, **web) for _ in range(3)]
        assert [each.status for each in found] == [200, 200, 429]
        assert "timings" not in found[0].body
        assert "timings" in (await call("POST", "/v1/recommend", {"itemIds": HISTORY}, **boss)).body
    written = "".join(path.read_text() for path in (tmp_path / "audit").glob("*.jsonl"))
    lines = sorted(map(json.loads, written.splitlines()), key=lambda line: line["time"])
    assert [(line["who"], line["method"], line["status"]) for line in lines] == [
        (None, "Recommend", "UNAUTHENTICATED"),
        ("key web", "DeleteUser", "PERMISSION_DENIED"),
        ("key boss", "DeleteUser", "OK"),
    ]
    async with serving(synthetic_bundle, admin_port=0) as (call, _):
        assert (await call("DELETE", "/v1/users/ann")).status == 404
        assert (await call("POST", "/v1/recommend", {"itemIds": HISTORY})).status == 200


async def test_a_server_that_drains_still_sends_what_it_has_begun(synthetic_bundle: Path) -> None:
    go, reached = threading.Event(), threading.Event()

    def wait(batch: int, depth: int) -> None:  # noqa: ARG001
        if warm.is_set():
            reached.set()
            go.wait(timeout=20)

    warm = threading.Event()
    settings = ServerSettings(port=0, http_port=0, drain_s=20)
    engine = lambda bundle, threads: FakeEngine(bundle.vectors, bundle.depths, on_run=wait)  # noqa: E731, ARG005
    async with Server(settings, synthetic_bundle, make_engine=engine) as server:
        info = await server.start()
        warm.set()
        asking = asyncio.create_task(
            Caller(str(info.http_address))("POST", "/v1/recommend", {"itemIds": HISTORY, "depth": 16})
        )
        await asyncio.to_thread(reached.wait, 20)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        go.set()
        answer = await asking
        assert (answer.status, len(answer.body["items"])) == (200, 10)
        assert await draining == 0


async def test_a_connection_that_says_nothing_is_closed(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "HEAD_S", 0.2)
    async with serving(synthetic_bundle) as (call, info):
        host, _, port = info.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: loc")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert (await call("GET", "/healthz")).status == 200


async def test_https_follows_the_authority_of_clients_and_survives_half_a_change(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    server_ca, old, new = (Authority(tmp_path / name, name) for name in ("own", "old", "new"))
    certificate, key = server_ca.issue("server")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(old.ca.read_bytes())

    async def status(authority: Authority) -> int | None:
        context = ssl.create_default_context(cafile=str(server_ca.ca))
        context.load_cert_chain(*authority.issue("client"))
        try:
            return (await Caller(address, context)("GET", "/healthz")).status
        except OSError:
            return None

    options = {"tls_cert": certificate, "tls_key": key, "tls_client_ca": trusted}
    async with serving(synthetic_bundle, **options) as (call, _):
        address = call.address
        assert (await status(old), await status(new)) == (200, None)
        trusted.write_bytes(new.ca.read_bytes())
        async with asyncio.timeout(20):
            while (await status(old), await status(new)) != (None, 200):
                await asyncio.sleep(0.05)
        # The certificate is there, its key is not yet: connections get the old pair.
        own = certificate.read_bytes()
        certificate.write_bytes(server_ca.issue("server", file="next")[0].read_bytes())
        for _ in range(3):
            assert await status(new) == 200
            await asyncio.sleep(0.5)
        certificate.write_bytes(own)
