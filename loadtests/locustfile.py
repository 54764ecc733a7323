"""A gRPC user over real histories.

    locust -f loadtests/locustfile.py --host 127.0.0.1:50051                                     # web page on :8089
    locust -f loadtests/locustfile.py --host 127.0.0.1:50051 --headless -u 16 -r 16 -t 30s

Options (each also as an environment variable): --histories, a dataset folder or a trace (LOADTEST_HISTORIES);
--profiles, names to mix (LOADTEST_PROFILES); --deadline-ms (LOADTEST_DEADLINE_MS); --think-ms (LOADTEST_THINK_MS).
TLS and metadata as for `fathom recommend`: --tls, --ca, --cert, --key, --metadata key=value.
Answers are listed by the depth that made them, errors by their status. What is served, and over which transport, is
logged at the start.
"""

# Both before grpc is imported: its threads must become greenlets, or one call would stop all users.
from gevent import monkey

monkey.patch_all()
import grpc.experimental.gevent  # noqa: E402

grpc.experimental.gevent.init_gevent()

import logging  # noqa: E402
import random  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import grpc  # noqa: E402
from locust import User, events, task  # noqa: E402

from fathom.client import Client  # noqa: E402
from fathom.connection import DEFAULT_TARGET, Connection  # noqa: E402
from fathom.errors import FathomError  # noqa: E402
from fathom.loadtests.traces import UserHistory, read_histories  # noqa: E402
from fathom.protos.fathom.v1 import recommender_pb2 as pb  # noqa: E402
from fathom.protos.fathom.v1 import recommender_pb2_grpc  # noqa: E402

LONGEST = 200
DEFAULT_HISTORIES = "build/ml-100k/dataset"


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    """Our options; locust's web page offers them too."""
    parser.add_argument("--histories", env_var="LOADTEST_HISTORIES", default=DEFAULT_HISTORIES, help="dataset or trace")
    parser.add_argument("--profiles", env_var="LOADTEST_PROFILES", default="", help="profiles to mix, with commas")
    parser.add_argument("--deadline-ms", env_var="LOADTEST_DEADLINE_MS", type=float, default=1000.0, help="per call")
    parser.add_argument("--tls", action="store_true", help="use TLS, with the certificate authorities of gRPC")
    parser.add_argument("--ca", type=Path, help="use TLS, with this certificate authority (PEM)")
    parser.add_argument("--cert", type=Path, help="TLS: the certificate to show (PEM)")
    parser.add_argument("--key", type=Path, help="TLS: the key of --cert (PEM)")
    parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="sent with every call")
    parser.add_argument("--think-ms", env_var="LOADTEST_THINK_MS", type=float, default=50.0, help="mean pause")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def read(environment: Any, **_: Any) -> None:
    """Read the histories once, for all users."""
    try:
        environment.histories = read_histories(Path(environment.parsed_options.histories))
        connection = _connection(environment)
    except FathomError as error:
        raise SystemExit(f"error: {error}") from None
    gevent.spawn(_log_server, connection)  # the users do not wait for it


def _log_server(connection: Connection) -> None:
    """Say what the users will meet; that it does not answer yet is theirs to find out."""
    try:
        with Client.over(connection) as client:
            served = client.bundle()
    except FathomError as error:
        logging.warning("%s", error)
    else:
        transport = served.transport or "unknown"
        logging.info("%s serves %s %s, transport %s", connection.target, served.name, served.version, transport)


def _connection(environment: Any) -> Connection:
    """What the options say; raises ConfigError."""
    options = environment.parsed_options
    target = (environment.host or DEFAULT_TARGET).removeprefix("http://").rstrip("/")
    return Connection.from_options(
        target, tls=options.tls, ca=options.ca, cert=options.cert, key=options.key, metadata=options.metadata
    )


class RecommendUser(User):
    """Asks for recommendations at a random moment of a random history, reads them for a while, asks again."""

    def wait_time(self) -> float:
        """Seconds until the next request: exponential, as independent people behave."""
        mean_s = self.environment.parsed_options.think_ms / 1e3
        return random.expovariate(1 / mean_s) if mean_s > 0 else 0.0

    def on_start(self) -> None:
        """One connection per user, as separate clients have."""
        options = self.environment.parsed_options
        connection = _connection(self.environment)
        self._metadata = connection.pairs
        self._channel = connection.channel([("grpc.use_local_subchannel_pool", 1)])
        self._stub = recommender_pb2_grpc.RecommenderStub(self._channel)  # type: ignore[no-untyped-call]
        self._profiles = [name.strip() for name in options.profiles.split(",")]
        self._deadline_s = options.deadline_ms / 1e3

    def on_stop(self) -> None:
        """Close the connection."""
        self._channel.close()

    @task
    def recommend(self) -> None:
        """One request, recorded under the depth that answered it or the status that refused it."""
        history: UserHistory = random.choice(self.environment.histories)
        end = random.randint(1, len(history.items))
        start = max(0, end - LONGEST)
        request = pb.RecommendRequest(
            item_ids=history.items[start:end],
            timestamps=history.timestamps[start:end],
            profile=random.choice(self._profiles),
        )
        started = time.perf_counter()
        name, size, failure = "Recommend", 0, None
        try:
            answer = self._stub.Recommend(request, timeout=self._deadline_s, metadata=self._metadata)
            name, size = f"Recommend depth {answer.depth}", answer.ByteSize()
        except grpc.RpcError as error:
            failure = error
            name = f"Recommend {error.code().name}"
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=size,
            exception=failure,
            context={},
        )
