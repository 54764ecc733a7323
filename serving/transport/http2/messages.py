"""gRPC's messages, put together from what frames hold: each has a flag and its length before it."""

import zlib
from typing import Final

import grpc

PREFIX: Final = 5
_UNPACK: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class MessageFault(Exception):
    """A call whose messages cannot be read, and the status that it ends with."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Assembly:
    """The messages of one call; ``most``: bytes of each, ``encoding``: of those that are compressed."""

    __slots__ = ("_bytes", "_encoding", "_most")

    def __init__(self, most: int, encoding: bytes) -> None:
        self._bytes = bytearray()
        self._encoding = encoding
        self._most = most

    @property
    def is_between(self) -> bool:
        """Whether all that has come belongs to messages that are complete."""
        return not self._bytes

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with it; raises MessageFault, as soon as one is announced too large."""
        held, found, at = self._bytes, [], 0
        held += data
        while len(held) - at >= PREFIX:
            length = int.from_bytes(held[at + 1 : at + PREFIX], "big")
            if length > self._most:
                raise too_large(length, self._most)
            end = at + PREFIX + length
            if end > len(held):
                break
            message = bytes(held[at + PREFIX : end])
            found.append(message if held[at] == 0 else self._unpacked(held[at], message))
            at = end
        del held[:at]
        return found

    def _unpacked(self, flag: int, message: bytes) -> bytes:
        if self._encoding == b"identity" or flag != 1:
            raise MessageFault(grpc.StatusCode.INTERNAL, "a message is said to be compressed, but not how")
        bits = _UNPACK.get(self._encoding)
        if bits is None:
            name = self._encoding.decode("latin-1")
            raise MessageFault(grpc.StatusCode.UNIMPLEMENTED, f"grpc-encoding {name} is not known here")
        unpacking = zlib.decompressobj(bits)
        try:
            unpacked = unpacking.decompress(message, self._most + 1)
        except zlib.error:
            raise MessageFault(grpc.StatusCode.INTERNAL, "a compressed message cannot be read") from None
        if len(unpacked) > self._most:
            raise too_large(len(unpacked), self._most)
        if not unpacking.eof:
            raise MessageFault(grpc.StatusCode.INTERNAL, "a compressed message cannot be read")
        return unpacked


def too_large(size: int, most: int) -> MessageFault:
    """What a message of so many bytes, or more, ends its call with."""
    return MessageFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message has {size:,} bytes or more, at most {most:,} are allowed"
    )
