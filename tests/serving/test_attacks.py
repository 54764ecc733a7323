"""Known attacks on a server that knows its callers: each of them fails, on both transports."""

import base64
import hashlib
import hmac
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import yaml
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fathom.client import Client, Event, Outcome, Query
from fathom.connection import Connection
from fathom.errors import (
    ConnectError,
    NotFoundError,
    OverloadError,
    PermissionDeniedError,
    RequestError,
    UnauthenticatedError,
)
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.serving.access.keys import new_key
from fathom.serving.access.principal import ROLE_OF

ISSUER, AUDIENCE = "https://id.example.org", "fathom"
HISTORY = ["item-1", "item-2", "item-3"]
USER = "ann@example.org"
KEYS = {name: new_key() for name in ("web", "events", "operator", "shop", "films", "slow")}


def key_file(folder: Path, rsa_key: rsa.RSAPrivateKey) -> Path:
    """A set of one public key."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key.public_key()))
    path = folder / "jwks.json"
    path.write_text(json.dumps({"keys": [{**public, "kid": "one", "use": "sig"}]}))
    return path


def access_of(jwks: Path) -> dict[str, Any]:
    def key(name: str, *roles: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "sha256": KEYS[name].sha256, "roles": list(roles), **more}

    return {
        "tenants": {"shop": {"bundles": ["shop"]}, "films": {"bundles": ["films", "both"], "default_bundle": "films"}},
        "keys": [
            key("web", "recommend"),
            key("events", "write"),
            key("operator", "admin"),
            key("shop", "recommend", "write", "admin", tenant="shop"),
            key("films", "recommend", "write", tenant="films"),
            key("slow", "recommend", rate=0.001, burst=3),
        ],
        "jwt": [
            {
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "jwks": jwks.name,
                "algorithms": ["RS256"],
                "user_claim": "sub",
            }
        ],
        "certificates": [{"name": "batch.shop.internal", "roles": ["recommend"], "tenant": "shop"}],
        "revoked": ["stolen"],
    }


@dataclass(frozen=True)
class Secured:
    """A server as `fathom serve` starts it, with mutual TLS, and what the attackers have."""

    address: str
    metrics: str
    folder: Path
    authority: Authority
    signer: rsa.RSAPrivateKey
    certificate: tuple[Path, Path]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def audit(self) -> list[dict[str, Any]]:
        files = (self.folder / "audit").glob("*.jsonl")
        lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return sorted(lines, key=lambda line: line["time"])

    def connection(self, token: str | None, certificate: tuple[Path, Path] | None = None) -> Connection:
        metadata = {} if token is None else {"authorization": f"Bearer {token}"}
        return Connection(self.address, self.authority.ca, *(certificate or self.certificate), metadata)

    def client(self, token: str | None, certificate: tuple[Path, Path] | None = None) -> Client:
        return Client.over(self.connection(token, certificate))

    def token(self, key: Any = None, algorithm: str = "RS256", kid: str = "one", **claims: Any) -> str:
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": USER, "exp": time.time() + 60, "roles": ["recommend"]} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.signer if key is None else key, algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def secured(
    synthetic_bundle: Path, tiny_build: Path, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    for name in ("main", "shop", "films"):
        shutil.copytree(synthetic_bundle, folder / "bundles" / name / "1")
    shutil.copytree(tiny_build / "bundle", folder / "bundles" / "both" / "1")
    authority = Authority(folder / "pki")
    server = authority.issue("server")
    signer = rsa.generate_private_key(65537, 2048)
    experiments = folder / "experiments.yaml"
    arms = {"control": {"share": 0.0}, "same": {"share": 0.0}}
    e = {"arms": arms, "primary": {"outcome": "click"}}
    experiments.write_text(yaml.safe_dump({"salt": "a-salt-of-tests", "experiments": {"e": e}}))
    access = folder / "access.yaml"
    access.write_text(yaml.safe_dump(access_of(key_file(folder, signer))))
    options = {
        "port": 0, "metrics-port": 0, "history": "memory", "catalogue": "memory", "transport": transport,
        "tls-cert": server[0], "tls-key": server[1], "tls-client-ca": authority.ca, "access": access,
        "audit": folder / "audit", "default-bundle": "main", "log-level": "debug",
        "experiments": experiments, "experiments-log": folder / "logs",
    }  # fmt: skip
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with (folder / "log").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "fathom", "serve", str(folder / "bundles"), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        ready = json.loads(line)
        yield Secured(ready["address"], ready["metrics_address"], folder, authority, signer, authority.issue("anybody"))
        process.terminate()
        assert process.wait(timeout=30) == 0, (folder / "log").read_text()


def stub_of(channel: grpc.Channel) -> Any:
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """How a call ends; streams are read."""
    try:
        answer = call()
        if not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return grpc.StatusCode.OK


REQUESTS: Mapping[str, Any] = {
    "Recommend": pb.RecommendRequest(item_ids=HISTORY),
    "RecommendBatch": pb.RecommendBatchRequest(requests=[pb.RecommendRequest(item_ids=HISTORY)]),
    "RecommendStream": [pb.RecommendRequest(item_ids=HISTORY)],
    "GetBundle": pb.GetBundleRequest(),
    "AppendEvents": pb.AppendEventsRequest(user_id="bob", events=[pb.Event(event_id="1", item_id="item-1")]),
    "AppendEventStream": [pb.AppendEventsRequest(user_id="bob", events=[pb.Event(event_id="2", item_id="item-1")])],
    "DeleteUser": pb.DeleteUserRequest(user_id="bob"),
    "UpsertItems": pb.UpsertItemsRequest(items=[pb.CatalogueItem(id="new", similar_item_ids=["item-1"])]),
    "RemoveItems": pb.RemoveItemsRequest(item_ids=["new"]),
    "ListItems": pb.ListItemsRequest(),
    "Reload": pb.ReloadRequest(),
    "ReportOutcomes": pb.ReportOutcomesRequest(outcomes=[pb.Outcome(request_id="r", kind="click")]),
    "ListExperiments": pb.ListExperimentsRequest(),
    "ChangeExperiment": pb.ChangeExperimentRequest(name="e", action=pb.ChangeExperimentRequest.STOP),
}


def ask(stub: Any, method: str, **options: Any) -> grpc.StatusCode:
    request = REQUESTS[method]
    return code_of(lambda: getattr(stub, method)(iter(request) if isinstance(request, list) else request, **options))


@pytest.mark.parametrize(
    ("who", "roles"),
    [
        (None, {}),
        ("fathom_" + "x" * 43, {}),
        (KEYS["web"].text, {"recommend"}),
        (KEYS["events"].text, {"write"}),
        (KEYS["operator"].text, {"recommend", "write", "admin"}),
    ],
    ids=["nobody", "unknown key", "recommend", "write", "admin"],
)
def test_every_method_asks_who_calls_and_for_its_role(secured: Secured, who: str | None, roles: set[str]) -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED if not roles else grpc.StatusCode.PERMISSION_DENIED
    assert set(ROLE_OF) == set(REQUESTS) == set(pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name)
    with secured.connection(who).channel() as channel:
        found = {
            method: ask(stub_of(channel), method, metadata=secured.connection(who).pairs, timeout=20)
            for method in REQUESTS
        }
    assert found == {method: grpc.StatusCode.OK if role in roles else refused for method, role in ROLE_OF.items()}


def test_probes_need_no_key(secured: Secured) -> None:
    with secured.connection(None).channel() as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# What a user did, through a key that may only recommend.

READS_HISTORY = [
    {"filter": pb.Filter(include_seen=True)},
    {"filter": pb.Filter(allow_item_ids=["item-1"])},
    {"filter": pb.Filter(exclude_item_ids=["item-9"])},
    {"filter": pb.Filter(categories=["comedy"])},
    {"filter": pb.Filter(seen_types=["view"])},
    {"filter": pb.Filter()},
    {"rules": pb.Rules(boosts=[pb.Boost(item_id="item-1", amount=10)])},
    {"rules": pb.Rules(pins=[pb.Pin(item_id="item-1", position=1)])},
    {"include_reasons": True},
    {"depth": 4},
    {"request_time": 4_000},
    {"context": {"country": "DE"}},
    {"k": 50},
    {"k": 6},
]


@pytest.fixture(scope="module")
def known_user(secured: Secured) -> str:
    """Has a history that only the store knows."""
    with secured.client(KEYS["events"].text) as client:
        client.append_events(USER, [Event(f"e{n}", item, 100 + n, "view") for n, item in enumerate(HISTORY)])
    return USER


@pytest.mark.parametrize("asked", READS_HISTORY, ids=str)
def test_a_history_cannot_be_read_through_what_an_answer_leaves_out(
    secured: Secured, known_user: str, asked: dict[str, Any]
) -> None:
    request = pb.RecommendRequest(user_id=known_user, **{"k": 5, **asked})
    with secured.connection(KEYS["web"].text).channel() as channel:
        metadata = secured.connection(KEYS["web"].text).pairs
        assert code_of(lambda: stub_of(channel).Recommend(request, metadata=metadata)) is (
            grpc.StatusCode.PERMISSION_DENIED
        )
        batch = pb.RecommendBatchRequest(requests=[request])
        (result,) = stub_of(channel).RecommendBatch(batch, metadata=metadata).results
        assert result.error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        (line,) = [each for each in secured.audit() if each["method"] == "RecommendBatch"][-1:]
        assert (line["who"], line["status"], line["refused_parts"]) == ("key web", "OK", 1)


def test_an_answer_from_a_stored_history_says_nothing_about_it_but_its_best_items(
    secured: Secured, known_user: str
) -> None:
    with secured.client(KEYS["web"].text) as client:
        answer = client.recommend(user_id=known_user, k=5)
    assert len(answer.items) == 5
    assert not {item.id for item in answer.items} & set(HISTORY)
    assert (answer.history_used, answer.unknown_items, answer.complexity) == (0, 0, None)
    # Exact scores could be searched for with histories of the caller's own.
    assert {item.score for item in answer.items} == {0.0}


def test_who_writes_histories_may_use_filters_with_them(secured: Secured, known_user: str) -> None:
    with secured.client(KEYS["operator"].text) as client:
        answer = client.recommend(user_id=known_user, k=50, include_seen=True)
    assert set(HISTORY) <= {item.id for item in answer.items}
    assert answer.history_used == 3


# What is cached, and for whom.


def reused(secured: Secured) -> float:
    """Answers that the prefix cache of the bundle `both` had a part in."""
    text = scraped(secured, KEYS["operator"].text)[1]
    lines = [line for line in text.splitlines() if line.startswith('fathom_reused_total{bundle="both"')]
    return sum(float(line.split()[-1]) for line in lines if 'reused="nothing"' not in line)


def scraped(secured: Secured, token: str | None) -> tuple[int, str]:
    request = urllib.request.Request(f"https://{secured.metrics}/metrics")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=str(secured.authority.ca))
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_nobody_finds_in_the_cache_what_another_tenant_has_sent(secured: Secured) -> None:
    history = [f"i{n}" for n in range(7, 17)]
    with secured.client(KEYS["films"].text) as films, secured.client(KEYS["operator"].text) as operator:
        depth = films.bundle("both").depths[-1]
        films.recommend(history, bundle="both", depth=depth)
        before = reused(secured)
        operator.recommend(history, bundle="both", depth=depth)
        assert reused(secured) == before
        films.recommend(history, bundle="both", depth=depth)
        assert reused(secured) == before + 1


def test_only_admins_get_exact_timings_and_metrics(secured: Secured) -> None:
    with secured.client(KEYS["web"].text) as web, secured.client(KEYS["operator"].text) as operator:
        assert web.recommend(HISTORY, depth=16).timings.total_us == 0
        assert operator.recommend(HISTORY, depth=16).timings.total_us > 0
    refused = {None: 401, "x": 401, KEYS["web"].text: 403, KEYS["shop"].text: 403}
    assert {token: scraped(secured, token)[0] for token in refused} == refused
    assert [line["method"] for line in secured.audit()].count("/metrics") >= 3


# Tenants.


def test_a_tenant_reaches_only_its_own_bundles(secured: Secured) -> None:
    with secured.client(KEYS["shop"].text) as shop:
        assert shop.bundle().name == "synthetic"
        assert shop.recommend(HISTORY).items
        for call in (
            lambda: shop.recommend(HISTORY, bundle="films"),
            lambda: shop.bundle("films"),
            lambda: shop.reload("films"),
        ):
            with pytest.raises(NotFoundError, match=r"bundle 'films' is not .* shop$"):
                call()
        assert [each.bundle for each in shop.reload()] == ["shop"]
        with pytest.raises(PermissionDeniedError, match="experiments are for all tenants"):
            shop.experiments()
    with secured.connection(KEYS["shop"].text).channel() as channel:
        metadata = secured.connection(KEYS["shop"].text).pairs
        stub = stub_of(channel)
        assert stub.GetBundle(pb.GetBundleRequest(), metadata=metadata).bundles == ["shop"]
        item = pb.CatalogueItem(id="new", similar_item_ids=["item-1"])
        for request in (
            lambda: stub.UpsertItems(pb.UpsertItemsRequest(bundle="films", items=[item]), metadata=metadata),
            lambda: stub.RemoveItems(pb.RemoveItemsRequest(bundle="films", item_ids=["item-1"]), metadata=metadata),
            lambda: stub.ListItems(pb.ListItemsRequest(bundle="films"), metadata=metadata),
        ):
            assert code_of(request) is grpc.StatusCode.NOT_FOUND


def test_a_tenant_reaches_only_its_own_users(secured: Secured, known_user: str) -> None:
    with secured.client(KEYS["shop"].text) as shop, secured.client(KEYS["films"].text) as films:
        shop.append_events("carl", [Event("1", "item-5", 1)])
        assert shop.recommend(user_id="carl", k=5).history_used == 1
        for other in ("carl", "\x1fshop\x1fcarl", "shop/carl", known_user):
            with pytest.raises(RequestError, match=r"has no history|begins with a control character"):
                films.recommend(user_id=other, k=5, strict=True)
        assert films.recommend(user_id="carl", k=5).reason == "popular"
    with secured.client(KEYS["operator"].text) as operator:
        for other in ("carl", "\x1fshop\x1fcarl"):
            with pytest.raises(RequestError, match=r"has no history|begins with a control character"):
                operator.recommend(user_id=other, k=5, strict=True)


@pytest.mark.parametrize("name", ["fathom-tenant", "x-tenant", "tenant", "fathom-client", "x-forwarded-user"])
def test_no_header_but_the_key_says_who_calls(secured: Secured, name: str) -> None:
    metadata = (*secured.connection(KEYS["shop"].text).pairs, (name, "films"))
    with secured.connection(None).channel() as channel:
        answer = stub_of(channel).GetBundle(pb.GetBundleRequest(), metadata=metadata)
        assert answer.bundles == ["shop"]


# Tokens.


def tampered(token: str) -> str:
    head, body, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    said["roles"] = ["admin"]
    return ".".join((head, base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode(), signature))


def unsigned(_: Secured) -> str:
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": USER, "exp": time.time() + 60, "roles": ["admin"]}
    return jwt.encode(said, None, "none", headers={"kid": "one"})


def signed_with_the_public_key(secured: Secured) -> str:
    """As if the server took its public key for a shared secret (CVE-2015-9235)."""
    pem = secured.signer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    parts = (
        {"alg": "HS256", "typ": "JWT", "kid": "one"},
        json.loads(base64.urlsafe_b64decode(secured.token(roles=["admin"]).split(".")[1] + "==")),
    )
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    mac = base64.urlsafe_b64encode(hmac.digest(pem, text, "sha256")).rstrip(b"=")
    return b".".join((text, mac)).decode()


BAD_TOKENS: Mapping[str, Callable[[Secured], str]] = {
    "expired": lambda it: it.token(exp=time.time() - 3600),
    "without an end": lambda it: it.token(exp=None),
    "not valid yet": lambda it: it.token(nbf=time.time() + 3600),
    "of another issuer": lambda it: it.token(iss="https://evil.example.org"),
    "for another audience": lambda it: it.token(aud="billing"),
    "for nobody in particular": lambda it: it.token(aud=None),
    "of another key": lambda it: it.token(rsa.generate_private_key(65537, 2048)),
    "of an unknown key": lambda it: it.token(kid="two"),
    "of a key elsewhere": lambda it: it.token(kid="../../jwks.json"),
    "tampered with": lambda it: tampered(it.token()),
    "unsigned": unsigned,
    "signed with the public key": signed_with_the_public_key,
    "revoked": lambda it: it.token(jti="stolen"),
    "bound in an unknown way": lambda it: it.token(cnf={"jkt": "x"}),
    "no token": lambda _: "a.b.c",
    "very long": lambda _: "x" * 8_193,
}


@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_a_bad_token_is_refused(secured: Secured, bad: str) -> None:
    with secured.client(BAD_TOKENS[bad](secured)) as client, pytest.raises(UnauthenticatedError):
        client.recommend(HISTORY)


def test_a_token_serves_its_own_user_only_and_only_for_its_roles(secured: Secured, known_user: str) -> None:
    with secured.client(secured.token()) as client:
        assert client.recommend(user_id=known_user, k=5).items
        with pytest.raises(PermissionDeniedError, match="own user"):
            client.recommend(user_id="bob", k=5)
        with pytest.raises(PermissionDeniedError, match="role admin"):
            client.delete_user(known_user)
    denied = pytest.raises(PermissionDeniedError, match="reported by services")
    with secured.client(secured.token(roles=["write"])) as client, denied:
        client.report_outcomes([Outcome("r", "click", 1e308)])
    with secured.client(secured.token(roles=["root", "owner"])) as client, pytest.raises(PermissionDeniedError):
        client.recommend(HISTORY)


def test_a_stolen_token_is_worth_nothing_without_the_certificate_it_is_bound_to(secured: Secured) -> None:
    owner = secured.authority.issue("owner", file="owner")
    der = ssl.PEM_cert_to_DER_cert(owner[0].read_text())
    bound = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    token = secured.token(cnf={"x5t#S256": bound})
    with secured.client(token, owner) as client:
        assert client.recommend(HISTORY).items
    with secured.client(token) as thief, pytest.raises(UnauthenticatedError, match="another client's certificate"):
        thief.recommend(HISTORY)


# Headers and TLS.

SMUGGLED = {
    "two keys": [("authorization", f"Bearer {KEYS['web'].text}"), ("authorization", f"Bearer {KEYS['operator'].text}")],
    "in binary": [("authorization-bin", f"Bearer {KEYS['operator'].text}".encode())],
    "another scheme": [("authorization", f"Basic {KEYS['operator'].text}")],
    "no scheme": [("authorization", KEYS["operator"].text)],
    "two in one": [("authorization", f"Bearer x, Bearer {KEYS['operator'].text}")],
    "elsewhere": [("x-api-key", KEYS["operator"].text), ("proxy-authorization", f"Bearer {KEYS['operator'].text}")],
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_key_is_taken_from_one_header_and_in_one_form_only(secured: Secured, name: str) -> None:
    with secured.connection(None).channel() as channel:
        for method in ("Recommend", "GetBundle"):
            assert ask(stub_of(channel), method, metadata=SMUGGLED[name]) is grpc.StatusCode.UNAUTHENTICATED


def test_a_certificate_says_who_calls_where_there_is_no_key(secured: Secured) -> None:
    with secured.client(None, secured.authority.issue("batch.shop.internal")) as client:
        assert client.recommend(HISTORY).items
        with pytest.raises(PermissionDeniedError, match=r"certificate batch\.shop\.internal may not call DeleteUser"):
            client.delete_user("bob")


def test_a_certificate_of_another_authority_opens_no_connection(secured: Secured, tmp_path: Path) -> None:
    other = Authority(tmp_path, "authority").issue("batch.shop.internal")
    with secured.client(KEYS["operator"].text, other) as client, pytest.raises(ConnectError):
        client.recommend(HISTORY, timeout_s=5)


def test_without_tls_or_with_an_old_one_there_is_no_connection(secured: Secured) -> None:
    metadata = {"authorization": f"Bearer {KEYS['operator'].text}"}
    with Client(secured.address, metadata=metadata) as plain, pytest.raises(ConnectError):
        plain.recommend(HISTORY, timeout_s=5)
    with Client(secured.address, tls=secured.authority.ca, metadata=metadata) as bare, pytest.raises(ConnectError):
        bare.recommend(HISTORY, timeout_s=5)
    host, _, port = secured.address.rpartition(":")
    for address in (secured.address, secured.metrics):
        host, _, port = address.rpartition(":")
        assert not speaks(host, int(port), secured, ssl.TLSVersion.TLSv1_1)
    assert speaks(host, int(port), secured, ssl.TLSVersion.TLSv1_2)


def speaks(host: str, port: int, secured: Secured, version: ssl.TLSVersion) -> bool:
    """Whether a server answers a client that knows TLS up to a version only."""
    context = ssl.create_default_context(cafile=str(secured.authority.ca))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    try:
        with socket.create_connection((host, port), timeout=10) as raw, context.wrap_socket(raw, server_hostname=host):
            return True
    except OSError:  # as SSLError is
        return False


# Limits, and what is written down.


def test_a_key_gets_as_much_work_as_its_limit_says(secured: Secured) -> None:
    with secured.client(KEYS["slow"].text) as client:
        assert client.recommend(HISTORY).items
        assert len(client.recommend_many([Query(HISTORY)] * 2)) == 2
        with pytest.raises(OverloadError, match=r"key slow has reached its limit; try again in \d+ s"):
            client.recommend(HISTORY)


def test_the_audit_log_says_who_changed_what_and_names_no_user_and_no_key(secured: Secured) -> None:
    with secured.client(KEYS["operator"].text) as operator, secured.client(KEYS["web"].text) as web:
        operator.delete_user("dora")
        operator.delete_user("dora")
        with pytest.raises(PermissionDeniedError):
            web.delete_user("dora")
        with pytest.raises(UnauthenticatedError), secured.client("fathom_guess") as nobody:
            nobody.recommend(HISTORY)
    first, second, refused, unknown = secured.audit()[-4:]
    assert (first["who"], first["method"], first["status"]) == ("key operator", "DeleteUser", "OK")
    assert first["user"] == second["user"]
    assert len(first["user"]) == 32
    assert (refused["who"], refused["status"]) == ("key web", "PERMISSION_DENIED")
    assert (unknown["who"], unknown["method"], unknown["status"]) == (None, "Recommend", "UNAUTHENTICATED")
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in (first, refused, unknown))
    text = json.dumps(secured.audit())
    assert "dora" not in text
    assert USER not in text
    assert "item-" not in text
    assert (secured.folder / "audit" / "salt").stat().st_mode & 0o777 == 0o600


def test_no_log_holds_a_secret(secured: Secured) -> None:
    secrets = [key.text for key in KEYS.values()]
    with secured.client(secured.token()) as client:
        client.recommend(HISTORY)
    for text in (secured.log, json.dumps(secured.audit())):
        assert not [each for each in (*secrets, "eyJ") if each in text]
