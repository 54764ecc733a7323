"""HTTP/2's frames (RFC 9113, sections 4, 6 and 7)."""

import struct
from typing import Final

#: What a client begins with.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
#: Flags; of SETTINGS and PING, ACK is what END_STREAM is of others.
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM: Final = 11

#: Settings, by their numbers.
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
#: Payload of a frame, of a sender that was not told another limit; and what a window begins with.
FRAME_SIZE, WINDOW = 16_384, 65_535
LARGEST_FRAME_SIZE, LARGEST_WINDOW = 2**24 - 1, 2**31 - 1

#: Length (its first byte, and the other two), type, flags, stream.
HEAD: Final = struct.Struct(">BHBBL")
NUMBER: Final = struct.Struct(">L")
SETTING: Final = struct.Struct(">HL")
PRIORITY_SIZE: Final = 5


class ConnectionFault(Exception):
    """The other side breaks the protocol so that its connection cannot go on; ``code``: as GOAWAY tells it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings_frame(settings: dict[int, int]) -> bytes:
    """What the other side has to keep to."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings.items()))


def settings_in(flags: int, number: int, payload: bytes) -> dict[int, int]:
    """What a frame of settings says, by name; raises ConnectionFault."""
    if number:
        raise ConnectionFault(PROTOCOL_ERROR, "settings of a call")
    if len(payload) % SETTING.size or (flags & ACK and payload):
        raise ConnectionFault(FRAME_SIZE_ERROR, "settings of a wrong size")
    settings = {}
    for name, value in SETTING.iter_unpack(payload):
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if name == MAX_FRAME_SIZE and not FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
            raise ConnectionFault(PROTOCOL_ERROR, "a wrong frame size")
        if name == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "too large a window")
        settings[name] = value
    return settings


def window_update(stream: int, more: int) -> bytes:
    """The other side may send so many bytes more; stream 0: on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(more))


def reset(stream: int, code: int) -> bytes:
    """End a stream."""
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """No streams after ``last`` are taken."""
    return frame(GOAWAY, 0, 0, NUMBER.pack(last) + NUMBER.pack(code) + text.encode())


def number_in(payload: bytes) -> int:
    """What a frame of one number says; raises ConnectionFault."""
    if len(payload) != NUMBER.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame of a wrong size")
    number: int = NUMBER.unpack(payload)[0]
    return number


def check_ignored(kind: int, number: int, payload: bytes) -> None:
    """A frame that changes nothing still has to be one; raises ConnectionFault."""
    if (kind == PRIORITY and not number) or (kind == GOAWAY and number):
        raise ConnectionFault(PROTOCOL_ERROR, "a frame of the wrong stream")
    if (kind == PRIORITY and len(payload) != PRIORITY_SIZE) or (kind == GOAWAY and len(payload) < 2 * NUMBER.size):
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame of a wrong size")


def without_priority(payload: bytes, flags: int) -> bytes:
    """The fields that a HEADERS frame holds; raises ConnectionFault."""
    fields = unpadded(payload, flags)
    if not flags & PRIORITIZED:
        return fields
    if len(fields) < PRIORITY_SIZE:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a priority of a wrong size")
    return fields[PRIORITY_SIZE:]


def unpadded(payload: bytes, flags: int) -> bytes:
    """What a frame holds without its padding; raises ConnectionFault."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "more padding than there is frame")
    return payload[1 : len(payload) - payload[0]]
