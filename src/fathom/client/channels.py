"""A client's connections: to one server, on which calls take turns, or to many, which users are spread over."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import grpc

from fathom.client import arguments, messages
from fathom.client.affinity import Backend, Backends, Turns, Way, grouped, hash_of, key_of
from fathom.client.messages import Call
from fathom.client.names import Names, Place, is_name
from fathom.connection import DEFAULT_TARGET, Connection, Pem, check_metadata
from fathom.errors import ConfigError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

Options = tuple[tuple[str, Any], ...]

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"].full_name
#: States of a connection in which there is nobody to call.
GONE = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


def _calls(*codes: str, **more: object) -> str:
    """A service config with gRPC's own retries (gRFC A6).

    The throttling is the budget: ten failures in a row stop them.
    """
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": codes,
    }
    config = {
        "methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
    return json.dumps(config | more)


_OPTIONS: Options = (
    # Without a pool of its own, a channel would share the connection of every other one to the same target.
    ("grpc.use_local_subchannel_pool", 1),
    # By default a connection that fails is not tried again for a second, in which every retry would fail too; and after
    # a long absence of the server for two minutes, in which it may long be back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
ONE_SERVER: Options = (*_OPTIONS, ("grpc.service_config", _calls("UNAVAILABLE", "RESOURCE_EXHAUSTED")))
#: A lost server's calls go to the next one, so gRPC itself does not retry them. It watches the server's health (gRFC
#: A17), which of its policies round_robin does, and keeps the connection although nobody calls.
ONE_OF_MANY: Options = (
    *_OPTIONS,
    (
        "grpc.service_config",
        _calls(
            "RESOURCE_EXHAUSTED",
            loadBalancingConfig=[{"round_robin": {}}],
            healthCheckConfig={"serviceName": SERVICE},
        ),
    ),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
)


class Channels(ABC):
    """The connections of a client."""

    _header = ""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        affinity: bool = False,
        channels: int = 1,
        tls: bool | Pem = False,
        certificate: Pem | None = None,
        key: Pem | None = None,
        metadata: Mapping[str, str] | None = None,
        affinity_header: str = "",
    ) -> None:
        targets = [target] if isinstance(target, str) else arguments.targets(target)
        connection = Connection(targets[0], tls, certificate, key, metadata or {})
        if affinity_header:
            check_metadata(affinity_header, "")
            self._header = affinity_header.lower()
        self._open(connection, targets, channels, affinity=affinity or not isinstance(target, str))

    @classmethod
    def over(cls, connection: Connection, *, channels: int = 1, affinity: bool = False) -> Self:
        """A client for an existing Connection."""
        client = cls.__new__(cls)
        client._open(connection, [connection.target], channels, affinity=affinity)
        return client

    def _open(self, connection: Connection, targets: Sequence[str], channels: int, *, affinity: bool) -> None:
        if not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"channels is {brief(channels)}; it must be at least 1")
        self.target = ", ".join(targets)
        for each in targets:
            connection.to(each)
        self._connection = connection
        self._metadata, self._number, self._affinity = connection.pairs, channels, affinity
        self._looks_up = affinity and any(is_name(each) for each in targets)
        self._names = Names(targets)
        self._backends: Turns | Backends = Backends() if affinity else Turns()
        if not self._looks_up:
            self._become({each: Place(each) for each in targets})

    def _become(self, places: Mapping[str, Place]) -> tuple[list[Backend], list[Backend]]:
        """Have these servers, each with its connections; returns what is new, and what is to be closed."""
        names = {f"{name}#{number}": place for name, place in places.items() for number in range(self._number)}
        return self._backends.become(names, lambda name: self._backend(name, names[name]))

    def _backend(self, name: str, place: Place) -> Backend:
        options = ONE_OF_MANY if self._affinity else ONE_SERVER
        if place.host:
            # Its certificate is for the name, which is also what proxies expect as the authority.
            options += (("grpc.ssl_target_name_override", place.host), ("grpc.default_authority", place.host))
        channel = self._channel(self._connection.to(place.target), options)
        stub: Any = recommender_pb2_grpc.RecommenderStub
        return Backend(place.target, name, channel, stub(channel))

    @staticmethod
    @abstractmethod
    def _channel(connection: Connection, options: Options) -> Any:
        """A new channel, of this client's kind."""

    @property
    def _part(self) -> int:
        """How many queries to send together where there are many: enough for a message to each server."""
        return messages.PART * max(1, len(self._backends.all)) if self._affinity else messages.PART

    def _way(self, call: Call[Any], timeout_s: float) -> Way:
        """Choose a server for a call."""
        return Way(self._backends, key_of(call.request), arguments.seconds("timeout_s", timeout_s))

    def _send(self, call: Call[Any], way: Way, *, future: bool = False) -> Any:
        """Send a call: its response, or what is awaited for it; with ``future`` that of a blocking client."""
        method = getattr(way.backend.stub, call.rpc)
        method = method.future if future else method
        metadata = self._metadata + _trace_context()
        if self._header and way.key:
            metadata += ((self._header, f"{hash_of(way.key):016x}"),)
        return method(call.request, timeout=way.left_s, metadata=metadata)

    def _groups(self, call: Call[Any]) -> list[tuple[list[int], Call[Any]]]:
        """A message of many requests as one for each server, with the places of its requests in the whole."""
        requests = call.request.requests
        backends = self._backends
        places = grouped(backends, requests) if isinstance(backends, Backends) else [list(range(len(requests)))]
        if len(places) <= 1:
            return [(each, call) for each in places or [[]]]
        return [(each, messages.some_of(call, each)) for each in places]


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The W3C context of the caller's span, where the program uses OpenTelemetry."""
    if "opentelemetry.propagate" not in sys.modules:
        return ()
    carrier: dict[str, str] = {}
    sys.modules["opentelemetry.propagate"].inject(carrier)
    return tuple(carrier.items())
