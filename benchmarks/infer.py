"""Messages of Triton's gRPC protocol, ModelInfer, for one history and a depth: written and read by hand.

MLServer speaks it too; there a history is one string, its ids joined by newlines.
"""

import struct
from collections.abc import Iterator, Sequence

METHOD = "/inference.GRPCInferenceService/ModelInfer"
#: Fields of ModelInferResponse, and of its outputs.
_OUTPUTS, _RAW, _NAME = 5, 6, 1
_BYTES = 2


def infer_message(model: str, items: Sequence[str], depth: int, *, joined: bool = False) -> bytes:
    """An encoded ModelInferRequest with one history, for this depth."""
    names = ["\n".join(items)] if joined else items
    ids = b"".join(struct.pack("<I", len(item)) + item for item in (each.encode() for each in names))
    tensors = [("item_ids", "BYTES", len(names), ids), ("depth", "INT32", 1, struct.pack("<i", depth))]
    message = _field(1, model.encode())
    for name, kind, length, _ in tensors:
        shape = _field(3, _varint(1) + _varint(length))
        message += _field(5, _field(1, name.encode()) + _field(2, kind.encode()) + shape)
    return message + b"".join(_field(7, raw) for *_, raw in tensors)


def inferred_items(answer: bytes, output: str = "recommended") -> list[str]:
    """The strings of an output of an encoded ModelInferResponse, whose contents are raw."""
    names, contents = [], []
    for number, value in _fields(answer):
        if number == _OUTPUTS:
            names += [value.decode() for inner, value in _fields(value) if inner == _NAME]
        elif number == _RAW:
            contents.append(value)
    raw = contents[names.index(output)]
    found, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each field that has a length; all that such an answer has at this level are of that kind."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == _BYTES:
            yield tag >> 3, message[at : at + value]
            at += value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
