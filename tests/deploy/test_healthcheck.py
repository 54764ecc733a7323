"""The image's health check says what /healthz says, over HTTP and HTTPS."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from deploy_tools import DEPLOY

from fathom.benchmarks.ports import free_port
from fathom.benchmarks.server import started


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that it has signed itself, for a name that is not the address asked, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recommender.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    )
    return path


def check(port: int, host: str = "127.0.0.1") -> tuple[int, str]:
    environment = {**os.environ, "FATHOM_HOST": host, "FATHOM_METRICS_PORT": str(port)}
    command = [sys.executable, str(DEPLOY / "docker" / "healthcheck.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout.strip()


class Draining(BaseHTTPRequestHandler):
    """What a server that drains answers."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"draining\n")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def draining(context: ssl.SSLContext | None) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Draining) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_it_ends_with_0_while_the_server_serves_and_with_1_where_nothing_answers(synthetic_bundle: Path) -> None:
    port = free_port()
    assert check(port) == (1, "nothing answers")
    with started(synthetic_bundle, "--metrics-port", str(port)):
        assert check(port) == (0, "serving")
        assert check(port, "0.0.0.0") == (0, "serving")


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_it_ends_with_1_while_the_server_drains(secure: bool, certificate: Path) -> None:
    context = None
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with draining(context) as port:
        assert check(port) == (1, "draining")
