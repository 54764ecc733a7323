"""What TLS and access control cost: processor time of the server and latency, against a server that has neither.

Servers that differ in nothing else answer the same requests in turn: depth 4, histories of 50 items, one connection of
grpc.aio that lives as long as the round; the server on one core, the client on another. Keys and tokens are the same in
every call, as clients send them, so a token's signature is verified once. Writes results/security.json.
"""

import asyncio
import datetime
import ipaddress
import json
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.load import closed_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, StartedServer, catalogue_ids, on_core, started
from fathom.connection import Connection
from fathom.errors import optional
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.keys import new_key

SEED, ROUNDS, WARM_UP = 0, 7, 100
DEPTH, HISTORY, HISTORIES = 4, 50, 500
#: In flight, and requests of a round.
LOADS = {1: 300, 32: 2_000}
TIMEOUT_S = 30.0
PLAIN = "neither"
ISSUER, AUDIENCE = "https://id.example.org", "fathom"


@dataclass(frozen=True)
class Arm:
    """How a server is started, and what its client shows."""

    options: Sequence[str] = ()
    tls: bool = False
    certificate: bool = False
    token: str = ""


class Material:
    """Certificates, a key and a token, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cert, self.key = folder / "server.pem", folder / "server.key"
        self._certify()
        made = new_key()
        self.api_key, self.jwt = made.text, self._token()
        issuer = f"{{issuer: {ISSUER!r}, audience: {AUDIENCE}, jwks: jwks.json, algorithms: [ES256]}}"
        self.access = folder / "access.yaml"
        self.access.write_text(
            f"keys:\n  - {{name: bench, sha256: {made.sha256!r}, roles: [recommend]}}\njwt:\n  - {issuer}\n"
        )

    def arms(self) -> Mapping[str, Arm]:
        """By name, the one without anything first."""
        access = ("--access", str(self.access))
        tls = ("--tls-cert", str(self.cert), "--tls-key", str(self.key))
        mutual = (*tls, "--tls-client-ca", str(self.cert))
        return {
            PLAIN: Arm(),
            "API key": Arm(access, token=self.api_key),
            "token (JWT)": Arm(access, token=self.jwt),
            "TLS": Arm(tls, tls=True),
            "TLS and API key": Arm((*tls, *access), tls=True, token=self.api_key),
            "mutual TLS and API key": Arm((*mutual, *access), tls=True, certificate=True, token=self.api_key),
        }

    def connection(self, address: str, arm: Arm) -> Connection:
        """As an arm's client connects."""
        certificate, key = (self.cert, self.key) if arm.certificate else (None, None)
        metadata = {"authorization": f"Bearer {arm.token}"} if arm.token else {}
        return Connection(address, self.cert if arm.tls else False, certificate, key, metadata)

    def _certify(self) -> None:
        x509: Any = optional("cryptography.x509", "jwt")
        serialization: Any = optional("cryptography.hazmat.primitives.serialization", "jwt")
        hashes: Any = optional("cryptography.hazmat.primitives.hashes", "jwt")
        self._private = self._new_key()
        name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        places = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            x509.CertificateBuilder(name, name, self._private.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(places, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._private, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.cert.write_bytes(certificate.public_bytes(pem))
        encoding = pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.key.write_bytes(self._private.private_bytes(*encoding))

    @staticmethod
    def _new_key() -> Any:
        ec: Any = optional("cryptography.hazmat.primitives.asymmetric.ec", "jwt")
        return ec.generate_private_key(ec.SECP256R1())

    def _token(self) -> str:
        jwt: Any = optional("jwt", "jwt")
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._private.public_key()))
        (self.folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bench", "roles": ["recommend"], "exp": time.time() + 86_400}
        token: str = jwt.encode(claims, self._private, "ES256", headers={"kid": "one"})
        return token


async def ask(connection: Connection, server: StartedServer, messages: Sequence[bytes], in_flight: int) -> list[float]:
    """Microseconds of the server's processor time a request, and milliseconds until an answer, the median."""
    waited: list[float] = []
    async with connection.aio_channel() as channel:
        call: Any = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

        async def one(number: int) -> None:
            begin = time.perf_counter()
            await call(messages[number % len(messages)], timeout=TIMEOUT_S, metadata=connection.pairs)
            waited.append((time.perf_counter() - begin) * 1e3)

        await closed_loop(one, in_flight, WARM_UP)
        waited.clear()
        before_s = server.cpu_s()
        await closed_loop(one, in_flight, LOADS[in_flight])
        return [(server.cpu_s() - before_s) / LOADS[in_flight] * 1e6, median(waited)]


def compare(bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each arm and load: CPU of the server a request and latency, and how much more than without."""
    rng, ids = random.Random(SEED), catalogue_ids(bundle)
    histories = [rng.sample(ids, min(HISTORY, len(ids))) for _ in range(HISTORIES)]
    messages = [pb.RecommendRequest(item_ids=each, depth=DEPTH).SerializeToString() for each in histories]
    found: dict[tuple[int, str], list[list[float]]] = {}
    with ExitStack() as stack:
        material = Material(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        arms = material.arms()
        with on_core(0):
            servers = {
                name: stack.enter_context(started(bundle, "--reuse-mb", "0", "--feedback-share", "0", *arm.options))
                for name, arm in arms.items()
            }
        with on_core(1):
            for turn in range(rounds):
                for in_flight in LOADS:
                    for name in sorted(arms, reverse=bool(turn % 2)):
                        server = servers[name]
                        connection = material.connection(server.address, arms[name])
                        measured = asyncio.run(ask(connection, server, messages, in_flight))
                        found.setdefault((in_flight, name), []).append(measured)
    return [_row(in_flight, name, found) for in_flight in LOADS for name in arms]


def _row(in_flight: int, name: str, found: Mapping[tuple[int, str], list[list[float]]]) -> dict[str, Any]:
    own, plain = found[in_flight, name], found[in_flight, PLAIN]
    row: dict[str, Any] = {"in_flight": in_flight, "arm": name}
    for place, figure in enumerate(("cpu_us", "p50_ms")):
        more = [one[place] - other[place] for one, other in zip(own, plain, strict=True)]
        row[figure] = round(median(each[place] for each in own), 3)
        row[f"{figure}_more"] = round(median(more), 3)
        row[f"{figure}_more_range"] = [round(min(more), 3), round(max(more), 3)]
    return row


def section(run: StoredRun) -> str:
    """The stored run as a table."""
    rows = [
        {**row, **{f"{f}_low": row[f"{f}_more_range"][0] for f in ("cpu_us", "p50_ms")}}
        | {f"{f}_high": row[f"{f}_more_range"][1] for f in ("cpu_us", "p50_ms")}
        for row in run["result"]["rows"]
    ]
    about = (
        "CPU of the server's process a request, and the median until an answer; more: than the server with neither in"
        f" the same round, median of {run['config']['rounds']} rounds and their range. Each connection is new, and its"
        " handshake is not counted."
    )
    columns = (
        "in flight={in_flight} | the server asks for={arm} | CPU, µs={cpu_us:.0f}"
        " | more={cpu_us_more:+.0f} [{cpu_us_low:+.0f}, {cpu_us_high:+.0f}] | p50, ms={p50_ms:.2f}"
        " | more={p50_ms_more:+.2f} [{p50_ms_low:+.2f}, {p50_ms_high:+.2f}]"
    )
    return paragraphs("## What TLS and keys cost", about, table_of(rows, columns))


def _measure(options: Namespace) -> Iterator[Run]:
    rows = compare(options.bundle, options.rounds)
    config = {"bundle": options.bundle.name, "rounds": options.rounds, "depth": DEPTH, "history": HISTORY}
    yield Run(config | {"requests": {str(each): count for each, count in LOADS.items()}}, {"rows": rows}, SEED)


BENCHMARK = Benchmark(
    __doc__, "3 min, two cores", {"bundle": Path, "--rounds": ROUNDS}, _measure, of_runs(section, "security")
)
