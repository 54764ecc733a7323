"""An HTTP request as a call: who calls, how long they wait, and how it ends."""

import time
from collections.abc import Mapping
from http import HTTPStatus

import grpc
from starlette.requests import Request

from fathom.errors import InvalidRequestError
from fathom.serving.access.caller import CLIENT_KEY
from fathom.serving.access.control import HEADER
from fathom.serving.tracing import HEADERS as TRACE_HEADERS
from fathom.serving.transport.contract import AuthContext, Metadata

#: How long the caller waits, as gRPC writes it: 200m for 200 milliseconds.
TIMEOUT_HEADER = "grpc-timeout"
_UNITS = {"H": 3_600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

#: As google.rpc.Code says of each.
HTTP_STATUSES: Mapping[grpc.StatusCode, HTTPStatus] = {
    grpc.StatusCode.OK: HTTPStatus.OK,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


class HttpCall:
    """What access control, the audit log and the methods want to know of a call."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._begun_s = time.monotonic()

    def invocation_metadata(self) -> Metadata:
        """The headers that mean something here."""
        headers = self._request.headers
        return [(name, value) for name in (HEADER, CLIENT_KEY, *TRACE_HEADERS) for value in headers.getlist(name)]

    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
        client = self._request.client
        if client is None:
            return "unknown"
        return f"ipv6:[{client.host}]:{client.port}" if ":" in client.host else f"ipv4:{client.host}:{client.port}"

    def auth_context(self) -> AuthContext:
        """Nothing: certificates are checked, but are no identity here."""
        return {}

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, None without one; raises InvalidRequestError for a header that says none."""
        text = self._request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return None
        number, unit = text[:-1], text[-1:]
        if not (number.isascii() and number.isdigit() and len(number) <= 8 and unit in _UNITS):
            raise InvalidRequestError(f"{TIMEOUT_HEADER} is no time, as 200m for 200 milliseconds")
        return max(0.0, int(number) * _UNITS[unit] - (time.monotonic() - self._begun_s))
