"""The one table from errors to gRPC statuses; docs/operating.md prints it for clients."""

import grpc

from fathom.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)

STATUSES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (OverloadError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
)
INTERNAL_TEXT = "internal error; the server's log has the details"
# Status texts travel in an HTTP/2 trailer, which peers limit to 8 KB and which percent-encodes other alphabets.
LONGEST_TEXT = 500


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the text that a client gets for an error; anything unforeseen is INTERNAL and says no more."""
    for kind, code in STATUSES:
        if isinstance(error, kind):
            return code, str(error)[:LONGEST_TEXT]
    return grpc.StatusCode.INTERNAL, INTERNAL_TEXT


def retry_after_s(error: Exception) -> float | None:
    """In how many seconds it is worth trying again, where the server can say."""
    return error.retry_after_s if isinstance(error, OverloadError) else None


def code_number(code: grpc.StatusCode) -> int:
    """A status as the number of google.rpc.Code."""
    number: int = code.value[0]  # grpc declares the value as int, and makes it (number, name)
    return number
