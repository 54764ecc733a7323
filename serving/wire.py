"""The wire format of protobuf, as far as a message can be taken apart before any of it is decoded."""

from google.protobuf.message import DecodeError

from fathom.serving.guard import undecodable

_VARINT, _LENGTH_DELIMITED = 0, 2
#: Bytes of a value of another wire type; groups are not used.
_SIZES = {1: 8, 5: 4}
#: Fields of a message beside those that it is taken apart at; by the contract there is one.
MOST_OTHERS = 100


def parts_of(raw: bytes, number: int, most: int) -> tuple[list[memoryview], bytes]:
    """The messages of the repeated field ``number``, still encoded, and all other fields, joined.

    Stops at the first beyond ``most`` messages, so that one of millions costs no more. Raises InvalidRequestError where
    the bytes are no message.
    """
    try:
        return _parts_of(raw, number, most)
    except (DecodeError, IndexError, KeyError):
        raise undecodable() from None


def _parts_of(raw: bytes, number: int, most: int) -> tuple[list[memoryview], bytes]:
    view, parts, rest = memoryview(raw), list[memoryview](), bytearray()
    at = others = 0
    while at < len(raw) and len(parts) <= most:
        start = at
        tag, begin = _varint(raw, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(raw, begin)
        elif kind == _LENGTH_DELIMITED:
            size, begin = _varint(raw, begin)
            at = begin + size
        else:
            at = begin + _SIZES[kind]
        if at > len(raw) or not field:
            raise DecodeError
        if field == number and kind == _LENGTH_DELIMITED:
            parts.append(view[begin:at])
            continue
        rest += view[start:at]
        others += 1
        if others > MOST_OTHERS:
            raise DecodeError
    return parts, bytes(rest)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    byte = raw[at]
    if byte < 0x80:
        return byte, at + 1
    value = shift = 0
    while byte & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise DecodeError
        byte = raw[at]
    return value | byte << shift, at + 1
