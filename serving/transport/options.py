"""What gRPC's core is told about a listening port: sizes, streams, and how long connections may live.

Both transports take the same options. docs/operating.md, "Connections", says what clients see of them.
"""

import ipaddress
import resource
from contextlib import suppress
from pathlib import Path

from fathom.serving.config import ServerSettings

#: Calls that wait to be read: so many, or so many for each request that may wait for the engine.
BACKLOG, BACKLOG_PER_QUEUE = 10_000, 10
#: Calls in progress on one connection; clients keep further ones back until one has ended.
STREAMS = 1_024
#: Connections at once. An idle one takes about 20 KB.
MOST_CONNECTIONS = 10_000
#: Descriptors that connections leave alone: for files, stores and the metrics port.
SPARE_FILES = 64
#: A connection without a call is closed after that long ...
IDLE_S = 120.0
#: ... and any other gets no more calls after about that long, so that new servers behind one address get their share.
AGE_S = 300.0
#: How long the calls that it has then may go on. Only streams take so long, and clients that never end a message.
GRACE_S = 3_600.0
#: How long a new connection may take to say that it speaks HTTP/2.
HANDSHAKE_S = 20.0
#: How often it is asked whether the other side is still there, and how long it may take to answer.
PING_EVERY_S, PING_ANSWER_S = 60.0, 20.0
#: Clients that ask us more often than that, again and again, are told to go away.
LEAST_PING_S = 0.5


def server_options(settings: ServerSettings, *, shares_port: bool) -> list[tuple[str, int]]:
    """gRPC's channel arguments for a port; ``shares_port``: with other processes."""
    size = settings.max_message_mb * 1024 * 1024
    backlog = max(BACKLOG, BACKLOG_PER_QUEUE * settings.max_queue)
    return [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        # Otherwise a second server on the same port would silently take half of the calls.
        ("grpc.so_reuseport", int(shares_port)),
        # By default gRPC refuses calls that wait to be accepted with CANCELLED, some beyond 1,000 and all beyond
        # 3,000. With a larger backlog our own queue refuses first, with RESOURCE_EXHAUSTED.
        ("grpc.server.max_pending_requests", backlog),
        ("grpc.server.max_pending_requests_hard_limit", backlog),
        ("grpc.max_concurrent_streams", max(STREAMS, settings.max_queue)),
        # Otherwise calls that have been answered, but not yet been tidied away, count as well, and callers who keep to
        # the limit get UNAVAILABLE.
        ("grpc.http.overload_protection", 0),
        # Counted for each address that is listened on.
        ("grpc.max_allowed_incoming_connections", max(1, _connections() // _addresses(settings.host))),
        ("grpc.max_connection_idle_ms", _ms(IDLE_S)),
        ("grpc.max_connection_age_ms", _ms(AGE_S)),
        ("grpc.max_connection_age_grace_ms", _ms(GRACE_S)),
        ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_S)),
        ("grpc.keepalive_time_ms", _ms(PING_EVERY_S)),
        # The first alone would leave it at a minute: a ping has a time limit of its own.
        ("grpc.keepalive_timeout_ms", _ms(PING_ANSWER_S)),
        ("grpc.http2.ping_timeout_ms", _ms(PING_ANSWER_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(LEAST_PING_S)),
    ]


def _connections() -> int:
    """How many connections this process has descriptors for, beside what it has open now."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    left = limit - _open_files()
    return min(MOST_CONNECTIONS, max(left // 2, left - SPARE_FILES))


def allow_connections() -> None:
    """Raise this process's limit of descriptors as far as it needs and may; its children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _open_files() + MOST_CONNECTIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems have another limit besides
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_files() -> int:
    with suppress(OSError):
        return len(list(Path("/dev/fd").iterdir()))
    return SPARE_FILES


def _addresses(host: str) -> int:
    """How many addresses gRPC listens on: for a name, one of IPv4 and one of IPv6."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return 2
    return 1


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
