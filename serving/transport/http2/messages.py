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
    """The messages of one call that nobody has read, as they came: what is compressed stays so until it is read.

    ``most``: bytes of each; ``encoding``: of those that are compressed. ``len``: bytes of all.
    """

    __slots__ = ("_bytes", "_encoding", "_most")

    def __init__(self, most: int, encoding: bytes) -> None:
        self._bytes = bytearray()
        self._encoding = encoding
        self._most = most

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def has_message(self) -> bool:
        """Whether the first message is complete, or will not be read however much comes."""
        return len(self._bytes) >= PREFIX and (self._length > self._most or len(self._bytes) >= PREFIX + self._length)

    @property
    def _length(self) -> int:
        """Of the first message, as announced."""
        return int.from_bytes(self._bytes[1:PREFIX], "big")

    def feed(self, data: bytes) -> None:
        """More has come; raises MessageFault as soon as the first message is announced too large."""
        self._bytes += data
        if len(self._bytes) >= PREFIX and self._length > self._most:
            raise too_large(self._length, self._most)

    def pop(self) -> bytes:
        """The first message, which there is; raises MessageFault."""
        length, flag = self._length, self._bytes[0]
        if length > self._most:
            raise too_large(length, self._most)
        message = bytes(self._bytes[PREFIX : PREFIX + length])
        del self._bytes[: PREFIX + length]
        return self._unpacked(flag, message) if flag else message

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
