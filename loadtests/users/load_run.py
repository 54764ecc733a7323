"""What all users of a run share: options, histories, the way to the server, and what it says that it serves."""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fathom.client import error_of
from fathom.connection import DEFAULT_TARGET, Connection
from fathom.loadtests.traces import UserHistory, read_histories
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

LONGEST = 200
ASK_TIMEOUT_S = 5.0
#: Begins the id of every user, item, event and outcome that a load test invents.
MARK = "fathom-loadtest"
#: What an admin port answers, where the server has one.
ADMIN = frozenset(
    {"DeleteUser", "UpsertItems", "RemoveItems", "ListItems", "Reload", "ListExperiments", "ChangeExperiment"}
)
#: Statuses after which there is nobody to put a load on.
NOBODY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAUTHENTICATED,
)


@dataclass(frozen=True)
class Served:
    """What a server says of itself; texts are empty where it does not say."""

    bundle: str = ""
    transport: str = ""


class LoadRun:
    """One run of a load test; raises ConfigError or DataError for options that cannot be used.

    ``options``: those of the command line. ``host``: as locust has it, maybe with ``http://``.
    """

    def __init__(self, options: Any, host: str | None) -> None:
        self.options = options
        self.connection = _connection(options, host or DEFAULT_TARGET)
        self.admin = _connection(options, options.admin_host) if options.admin_host else self.connection
        self.histories: list[UserHistory] = read_histories(Path(options.histories))
        #: Always the same ones of the histories.
        self.some_items = list(dict.fromkeys(item for each in self.histories[:100] for item in each.items))[:100]
        self.served = Served()
        self.deadline_s: float = options.deadline_ms / 1e3
        self._profiles = [name.strip() for name in options.profiles.split(",")]

    def ask_server(self) -> Served:
        """Ask what is served, and remember it; raises ConnectError or a RequestError where nobody answers."""
        with self.connection.channel() as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            try:
                answer = stub.GetBundle(pb.GetBundleRequest(), timeout=ASK_TIMEOUT_S, metadata=self.connection.pairs)
            except grpc.RpcError as error:
                if error.code() in NOBODY:
                    raise error_of(self.connection.target, error) from None
            else:
                self.served = Served(f"{answer.name} {answer.version}", answer.transport)
        return self.served

    def request(self, request_id: str = "") -> pb.RecommendRequest:
        """A random moment of a random history, for one of the profiles."""
        history = random.choice(self.histories)
        end = random.randint(1, len(history.items))
        start = max(0, end - LONGEST)
        return pb.RecommendRequest(
            item_ids=history.items[start:end],
            timestamps=history.timestamps[start:end],
            profile=random.choice(self._profiles),
            request_id=request_id,
        )

    def item(self) -> str:
        """A random item of a random history."""
        return random.choice(random.choice(self.histories).items)


def failure_text(status: str, details: str | None) -> str:
    """An error as it is listed: without its figures, or every one would get a line of its own."""
    return f"{status}: {re.sub(r'[0-9][0-9.,]*', '#', ' '.join((details or '').split()))}"


def _connection(options: Any, host: str) -> Connection:
    return Connection.from_options(
        host.removeprefix("http://").rstrip("/"),
        tls=options.tls,
        ca=_path(options.ca),
        cert=_path(options.cert),
        key=_path(options.key),
        metadata=options.metadata,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
