"""gRPC's headers: a request's, read with HPACK, and an answer's (gRPC's PROTOCOL-HTTP2; RFC 9113, section 8)."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

import grpc
from hpack import Decoder, HPACKError
from hpack.exceptions import OversizedHeaderListError

from fathom.serving.transport.contract import Metadata
from fathom.serving.transport.http2.frames import (
    COMPRESSION_ERROR,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ConnectionFault,
)

#: Bytes of all names and values of a request, each with 32 more (RFC 9113, 6.5.2); beyond the second, its connection
#: ends, since what comes after it could not be read.
MOST_BYTES, MOST_BYTES_READ = 16_384, 65_536
#: Blocks that are known by heart, each of so many bytes at most when it is read.
KNOWN, KNOWN_BYTES = 64, 1_024
#: Characters of a status that are sent; each may become twelve.
MOST_TEXT = 500

_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_NOT_IN_VALUES = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$").search
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_CONTENT_TYPE = re.compile(rb"application/grpc([+;].*)?").fullmatch
#: Of a connection, which HTTP/2 has none of.
_FORBIDDEN = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
#: What is gRPC's own and no metadata.
_RESERVED = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"content-length"}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Refused(NamedTuple):
    """Why a request is none: the headers of what is answered, END_STREAM and all."""

    block: bytes


class Head(NamedTuple):
    """The headers of a call. ``path``: as text of latin-1; ``encoding``: of its compressed messages."""

    path: str
    timeout_s: float | None
    encoding: bytes
    metadata: Metadata


class HeaderBlock:
    """Headers that come in one frame or several."""

    def __init__(self, number: int, flags: int) -> None:
        self.number = number
        self.is_last = bool(flags & END_STREAM)
        self.fields = b""

    def add(self, fields: bytes, number: int) -> None:
        """The next ones, of the call with a number; raises ConnectionFault."""
        self.fields += fields
        if number != self.number:
            raise ConnectionFault(PROTOCOL_ERROR, "a continuation of other headers")
        if len(self.fields) > MOST_BYTES_READ:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "the headers are too large")


class Malformed(Exception):
    """No HTTP/2 request: its stream ends, its connection goes on."""


class HeaderReader:
    """Reads the header blocks of one connection, in their order.

    Callers say the same again and again. A block means the same as it did before as long as HPACK's table has not
    changed, so such a block need not be read twice.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MOST_BYTES_READ)
        self._known: dict[bytes, Head | Refused] = {}

    def read(self, block: bytes) -> "Head | Refused":
        """The head of a call; raises Malformed, or ConnectionFault where what comes after it cannot be read either."""
        known = self._known.get(block)
        if known is not None:
            return known
        size, count, first = self._table()
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "the headers are too large") from None
        except (HPACKError, ValueError, IndexError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"the headers cannot be read: {error}") from None
        now_size, now_count, now_first = self._table()
        # What is added comes first in the table, as an object of its own.
        changed = (now_size, now_count) != (size, count) or now_first is not first
        if changed:
            self._known.clear()
        head = head_of(fields)
        if not changed and sum(len(name) + len(value) for name, value in fields) <= KNOWN_BYTES:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[block] = head
        return head

    def skip(self, block: bytes) -> None:
        """Read headers that do not matter, but for what they change."""
        try:
            self.read(block)
        except Malformed:
            return

    def _table(self) -> tuple[int, int, object]:
        """The size that HPACK's table may have, its entries, and the first of them."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), entries[0] if entries else None


def head_of(fields: Iterable[tuple[bytes, bytes]]) -> "Head | Refused":
    """What a request's headers say; raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    size = 0
    wrong = None
    for name, value in fields:
        size += len(name) + len(value) + 32
        if _NOT_IN_VALUES(value):
            raise Malformed
        if name.startswith(b":"):
            if own or metadata or name in pseudo or name not in (b":method", b":scheme", b":path", b":authority"):
                raise Malformed
            pseudo[name] = value
        elif not _NAME(name) or name in _FORBIDDEN or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed
        elif name in _RESERVED:
            own[name] = value
        elif name.endswith(b"-bin"):
            try:
                metadata += [(name.decode(), _decoded(each)) for each in value.split(b",")]
            except binascii.Error:
                wrong = Refused(status_block(grpc.StatusCode.INTERNAL, f"{name.decode()} is not base64"))
        else:
            metadata.append((name.decode(), value.decode("latin-1")))
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        raise Malformed
    return wrong or _refusal(pseudo, own, size) or _head(pseudo[b":path"], own, tuple(metadata))


def _refusal(pseudo: dict[bytes, bytes], own: dict[bytes, bytes], size: int) -> Refused | None:
    if pseudo[b":method"] != b"POST":
        return Refused(literal(b":status", b"405") + literal(b"allow", b"POST"))
    if not _CONTENT_TYPE(own.get(b"content-type", b"").lower()):
        return Refused(literal(b":status", b"415"))
    if size > MOST_BYTES:
        text = f"the headers have {size:,} bytes, at most {MOST_BYTES:,}"
        return Refused(status_block(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
    return None


def _head(path: bytes, own: dict[bytes, bytes], metadata: Metadata) -> "Head | Refused":
    timeout = own.get(b"grpc-timeout")
    timeout_s = None
    if timeout is not None:
        found = _TIMEOUT(timeout)
        if found is None:
            return Refused(status_block(grpc.StatusCode.INTERNAL, "grpc-timeout is no time"))
        timeout_s = int(found[1]) * _SECONDS[found[2]]
    return Head(path.decode("latin-1"), timeout_s, own.get(b"grpc-encoding", b"identity"), metadata)


def _decoded(value: bytes) -> bytes:
    value = value.strip().rstrip(b"=")
    return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)


def literal(name: bytes, value: bytes) -> bytes:
    """A field that no table is needed for and none keeps (RFC 7541, 6.2.2)."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """As an integer of HPACK with a prefix of 7 bits (RFC 7541, 5.1)."""
    if len(text) < 0x7F:
        return bytes((len(text),))
    left, found = len(text) - 0x7F, bytearray((0x7F,))
    while left >= 0x80:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


#: Before the first message of an answer. 0x88: ``:status`` 200.
OPENING = (
    b"\x88" + literal(b"content-type", b"application/grpc") + literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
)
#: After its last one, where all went well.
OK = literal(b"grpc-status", b"0")


@lru_cache(256)
def trailers(code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> bytes:
    """What ends an answer that has begun."""
    fields = [literal(b"grpc-status", b"%d" % code.value[0])]
    if text:
        fields.append(literal(b"grpc-message", quote(text, safe=_PRINTABLE, errors="replace").encode()))
    return b"".join((*fields, *(literal(name.encode(), _encoded(value)) for name, value in trailing)))


def status_block(code: grpc.StatusCode, text: str, trailing: Sequence[tuple[str, str | bytes]] = ()) -> bytes:
    """The headers of an answer that is nothing but a status."""
    return OPENING + trailers(code, text[:MOST_TEXT], tuple((name, value) for name, value in trailing))


def _encoded(value: str | bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("latin-1", "replace")
