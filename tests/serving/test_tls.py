"""Clients and commands over TLS, with metadata: the product's service behind gRPC's own TLS."""

import asyncio
import datetime
import ipaddress
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from fathom.cli import app
from fathom.client import AsyncClient, Client
from fathom.connection import Connection
from fathom.errors import ConnectError, UnauthenticatedError
from fathom.loadtests.replay import replay
from fathom.loadtests.traces import Arrival, Trace
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.engines.open import open_engine
from fathom.serving.access.control import OPEN
from fathom.serving.bundles import Bundles
from fathom.serving.config import ServerSettings
from fathom.serving.gate import Gate
from fathom.serving.guard import Guard
from fathom.serving.metrics import Metrics
from fathom.serving.recommend import Recommend
from fathom.serving.service import ENCODED, RecommenderService
from fathom.serving.transport.contract import Call, Handlers, Take, Transport
from fathom.serving.transport.open import TransportName, open_transport
from fathom.serving.transport.tls import Certificates

HISTORY = ["item-1", "item-2"]
TOKEN = {"authorization": "Bearer secret"}


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    places = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return paths


class Checked:
    """A transport that lets in only who brings the token."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def take_calls(self, path: str, take: Take) -> None:
        def checked(calls: Sequence[Call], refused: int) -> int | None:
            for call in calls:
                if not is_known(call):
                    call.fail(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return take([call for call in calls if is_known(call)], refused)

        self.transport.take_calls(path, checked)

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        def checked(handler: Any) -> Any:
            async def behaviour(request: Any, context: Any) -> Any:
                if not is_known(context):
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
                return await handler.unary_unary(request, context)

            codec = handler.request_deserializer, handler.response_serializer
            return grpc.unary_unary_rpc_method_handler(behaviour, *codec) if handler.unary_unary else handler

        self.transport.add_handlers(service, {name: checked(handler) for name, handler in handlers.items()})


def is_known(call: Any) -> bool:
    return ("authorization", TOKEN["authorization"]) in [tuple(each) for each in call.invocation_metadata()]


@dataclass(frozen=True)
class Secure:
    address: str
    ca: Path
    cert: Path
    key: Path

    def options(self) -> list[str]:
        """As a command takes them."""
        files = ["--ca", self.ca, "--cert", self.cert, "--key", self.key]
        return ["--target", self.address, *map(str, files), "--metadata", "authorization=Bearer secret"]

    def connection(self) -> Connection:
        return Connection(self.address, self.ca, self.cert, self.key, TOKEN)


async def nobody_else(_what: str, _which: str) -> int:
    return 0


@pytest.fixture
async def secure(synthetic_bundle: Path, tmp_path: Path, transport: TransportName) -> AsyncIterator[Secure]:
    """A server that shows a certificate and wants to see one, and a token."""
    metrics, gate = Metrics(), Gate()
    bundles = Bundles(
        synthetic_bundle, ServerSettings(), metrics, lambda bundle, threads: open_engine(bundle, threads=threads)
    )
    await bundles.start()
    gate.open()
    recommend = Recommend(bundles, None, gate, metrics)
    service = RecommenderService(
        recommend, transport=transport, stream_in_flight=4, most_bytes=2**22, tell_workers=nobody_else
    )
    server = open_transport(transport, [])
    checked = Checked(server)
    checked.take_calls("/fathom.v1.Recommender/Recommend", recommend.take)
    guard = Guard(checked, metrics.called, taken=("Recommend",), encoded=ENCODED, access=OPEN)  # type: ignore[arg-type]
    recommender_pb2_grpc.add_RecommenderServicer_to_server(service, guard)  # type: ignore[no-untyped-call]
    own, own_key = self_signed(tmp_path, "server")
    cert, key = self_signed(tmp_path, "client")
    port = server.listen("127.0.0.1:0", Certificates(own, own_key, cert))
    await server.start()
    yield Secure(f"127.0.0.1:{port}", own, cert, key)
    await server.stop(None)
    await bundles.close()


async def test_both_clients_and_the_replayer_reach_a_server_over_tls(secure: Secure) -> None:
    options = {"tls": secure.ca, "certificate": secure.cert, "key": secure.key, "metadata": TOKEN}

    def blocking() -> None:
        with Client(secure.address, **options) as client:
            assert len(client.recommend(HISTORY).items) == 10
        # The contents do as well as the files.
        with Client(secure.address, **{**options, "tls": secure.ca.read_bytes()}) as client:
            assert client.bundle().name == "synthetic"
        with (
            Client(secure.address, **{**options, "metadata": {}}) as client,
            pytest.raises(UnauthenticatedError, match="who are you"),
        ):
            client.bundle()

    await asyncio.to_thread(blocking)
    async with AsyncClient(secure.address, **options, channels=2) as client:
        assert len((await client.recommend(HISTORY)).items) == 10
    trace = Trace((Arrival(0.0, ("item-1",)),), 0.1)
    report = await asyncio.to_thread(replay, secure.connection(), trace, bundle="synthetic")
    assert report.statuses == {"OK": 1}


@pytest.mark.parametrize("wrong", [{}, {"tls": True}, {"tls": "client.pem"}])
async def test_who_does_not_trust_the_server_gets_one_line(secure: Secure, wrong: dict, tmp_path: Path) -> None:
    options = {**wrong, "tls": tmp_path / wrong["tls"]} if isinstance(wrong.get("tls"), str) else wrong
    async with AsyncClient(secure.address, **options, metadata=TOKEN) as client:
        with pytest.raises(ConnectError) as caught:
            await client.bundle(timeout_s=2)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_every_command_that_asks_a_server_takes_the_same_options(secure: Secure, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    Trace((Arrival(0.0, ("item-1",)),), 0.1).save(trace)
    for command, field in (
        (["recommend", "--items", "item-1", "--bundle", "synthetic"], "depth"),
        (["loadtest", "--trace", str(trace), "--bundle", "synthetic"], "statuses"),
        (["reload", "synthetic"], None),
    ):
        arguments = [*command, "--json", *secure.options()]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        assert answer[field] if field else answer[0]["bundle"] == "synthetic"
