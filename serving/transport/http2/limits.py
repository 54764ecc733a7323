"""What a port keeps to, from gRPC's channel arguments; those that are not given are as in gRPC."""

from dataclasses import dataclass
from typing import Self

from fathom.serving.transport.contract import Options

#: What a caller may send on a connection, and on one of its calls, before it is read.
CONNECTION_WINDOW, STREAM_WINDOW = 2**26, 2**18
#: What is kept for a connection, and for all of them: messages that are not complete or not read, answers that wait for
#: room. More, where that is no more than a few of the largest messages.
HELD, HELD_IN_ALL, FEW = 2**26, 2**29, 2
#: Messages that are put together or unpacked, in bytes, before other connections have their turn.
TURN = 2**20
#: Answers that wait to be sent on a connection, before it is not read any more.
UNSENT = 2**18
#: Frames that ask for nothing, between two calls that end.
MOST_IDLE_FRAMES = 10_000
#: Pings that come too soon, between two answers.
MOST_PINGS = 2
#: How long a connection that is to end waits for calls that its client has sent before it heard of it.
LEAVING_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    received_bytes: int
    sent_bytes: int
    streams: int
    connections: int
    shares_port: bool
    idle_s: float
    age_s: float
    grace_s: float
    handshake_s: float
    ping_every_s: float
    ping_answer_s: float
    least_ping_s: float
    connection_window: int = CONNECTION_WINDOW
    stream_window: int = STREAM_WINDOW

    @classmethod
    def of(cls, options: Options) -> Self:
        """Those that channel arguments say."""
        given = dict(options)

        def seconds(name: str) -> float:
            return given.get(f"grpc.{name}_ms", 2**31) / 1e3

        return cls(
            received_bytes=given.get("grpc.max_receive_message_length", 2**22),
            sent_bytes=given.get("grpc.max_send_message_length", 2**31),
            streams=given.get("grpc.max_concurrent_streams", 2**31 - 1),
            connections=given.get("grpc.max_allowed_incoming_connections", 2**31),
            shares_port=bool(given.get("grpc.so_reuseport", 1)),
            idle_s=seconds("max_connection_idle"),
            age_s=seconds("max_connection_age"),
            grace_s=seconds("max_connection_age_grace"),
            handshake_s=seconds("server_handshake_timeout"),
            ping_every_s=seconds("keepalive_time"),
            ping_answer_s=seconds("keepalive_timeout"),
            least_ping_s=seconds("http2.min_ping_interval_without_data"),
        )

    @property
    def held_bytes(self) -> int:
        """How much is kept for one connection."""
        return max(HELD, FEW * self.received_bytes)

    @property
    def held_bytes_in_all(self) -> int:
        """How much is kept for all connections."""
        return max(HELD_IN_ALL, FEW * self.held_bytes)

    @property
    def look_every_s(self) -> float:
        """How often connections are looked at, so that no time is missed by much."""
        return min(1.0, min(self.idle_s, self.age_s, self.handshake_s, self.ping_every_s) / 4)
