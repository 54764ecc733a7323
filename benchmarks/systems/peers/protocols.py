"""What servers speak: how a history and a depth become a message, loads are offered, and answers are read."""

import http.client
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import grpc

from fathom.benchmarks import http1_load, http2_load, infer, server
from fathom.benchmarks.http2_load import Report
from fathom.benchmarks.server import StartedServer
from fathom.errors import UnavailableError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb

#: Of an open loop over HTTP/2.
CONNECTIONS = 4
TIMEOUT_S = 60.0
#: The longest time of interest: over HTTP/1.1 a request that found no connection for so long is not sent.
PATIENCE_MS = 50


class Answer(NamedTuple):
    """Items, the best first, and the depth they were found at, where the server says it."""

    items: Sequence[str]
    depth: int | None = None


@dataclass(frozen=True)
class Protocol:
    """``encode``: of a history and a depth, None for the server's choice. ``tells``: whether it carries deadlines."""

    encode: Callable[[Sequence[str], int | None], bytes]
    decode: Callable[[bytes], Answer]
    tells: bool
    method: str = ""
    path: str = ""

    def closed(self, server: StartedServer, messages: Iterable[bytes], in_flight: int, seconds: float) -> Report:
        """So many calls at any moment; over HTTP/2 all on one connection."""
        if self.path:
            return http1_load.closed(server.address, messages, in_flight, seconds=seconds, path=self.path)
        return http2_load.closed(server.address, messages, in_flight, 1, seconds, method=self.method)

    def open(
        self,
        server: StartedServer,
        messages: Iterable[bytes],
        per_s: float,
        seconds: float,
        deadline_ms: int,
        seed: int,
    ) -> Report:
        """Calls at random moments, each with its deadline where that can be told; keeps the answers."""
        if self.path:
            return http1_load.open(
                server.address,
                messages,
                per_s,
                seconds=seconds,
                deadline_ms=PATIENCE_MS,
                path=self.path,
                keep=True,
                seed=seed,
            )
        return http2_load.open(
            server.address,
            messages,
            per_s,
            CONNECTIONS,
            seconds,
            deadline_ms,
            method=self.method,
            keep=True,
            seed=seed,
        )

    def ask(self, server: StartedServer, messages: Sequence[bytes]) -> list[Answer]:
        """One after the other, however long they take; raises UnavailableError where one is not answered."""
        return [self.decode(answer) for answer in (self._http1 if self.path else self._http2)(server, messages)]

    def _http2(self, server: StartedServer, messages: Sequence[bytes]) -> list[bytes]:
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(self.method, request_serializer=None, response_deserializer=None)
            try:
                return [call(message, timeout=TIMEOUT_S) for message in messages]
            except grpc.RpcError as error:
                raise UnavailableError(f"a request was not answered: {brief(error.details())}") from None

    def _http1(self, server: StartedServer, messages: Sequence[bytes]) -> list[bytes]:
        found = []
        with closing(http.client.HTTPConnection(server.address, timeout=TIMEOUT_S)) as connection:
            for message in messages:
                try:
                    connection.request("POST", self.path, message)
                    answer = connection.getresponse()
                    found.append(answer.read())
                except (OSError, http.client.HTTPException) as error:
                    raise UnavailableError(f"a request was not answered: {error}") from None
                if answer.status != http.client.OK:
                    raise UnavailableError(f"a request was not answered: {answer.status} {brief(found[-1])}")
        return found


def _request(items: Sequence[str], depth: int | None) -> bytes:
    return pb.RecommendRequest(item_ids=items, depth=depth).SerializeToString()


def _response(answer: bytes) -> Answer:
    response = pb.RecommendResponse.FromString(answer)
    return Answer([item.id for item in response.items], response.depth)


def _inferred(answer: bytes) -> Answer:
    return Answer(infer.inferred_items(answer))


def _infer(model: str, joined: bool, items: Sequence[str], depth: int | None) -> bytes:
    assert depth is not None, "these servers choose nothing"
    return infer.infer_message(model, items, depth, joined=joined)


GRPC = Protocol(_request, _response, tells=True, method=server.METHOD)


def http1(path: str) -> Protocol:
    """Fathom's messages as bodies of POST; an answer says nothing of the deadline that it had."""
    return Protocol(_request, _response, tells=False, path=path)


def model_infer(model: str, *, joined: bool = False) -> Protocol:
    """Triton's ModelInfer over gRPC; see ``infer``."""
    return Protocol(partial(_infer, model, joined), _inferred, tells=True, method=infer.METHOD)
