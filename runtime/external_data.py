"""Whether an ONNX file takes values from other files: those are in no manifest, so they are refused.

onnxruntime reads such files from the working directory, even for a model that it is given as bytes. The online half has
no ONNX library; this walks the few fields of the protobuf encoding below which a tensor can stand.
"""

from collections.abc import Iterator, Mapping

from fathom.errors import BundleError

_ORT = b"ORTM"
#: Message -> number of a field -> the message in it. "tensor" has no message within.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def refuse_external_data(engine: bytes, name: object) -> None:
    """Raise BundleError for an engine that is not whole in itself, or is no ONNX file; ``name``: for its words.

    The .ort format has no place for another file's name.
    """
    if engine[4:8] == _ORT:
        return
    ahead = [("model", 0, len(engine))]
    try:
        while ahead:
            message, start, end = ahead.pop()
            inner = _MESSAGES[message]
            for field, begin, stop in _fields(engine, start, end):
                if message == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and begin)):
                    raise BundleError(f"{name}: takes values from another file; export the bundle again")
                if field in inner:
                    ahead.append((inner[field], begin, stop))
    except (IndexError, ValueError):
        raise BundleError(f"{name}: not an ONNX file; export the bundle again") from None


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field's bytes; for a whole number its value and 0. ValueError for anything else."""
    while place < end:
        tag, place = _varint(data, place)
        if tag >> 32:
            raise ValueError("a tag is too long; other readers drop what is too much and see another field")
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield field, value, 0
            continue
        if kind == _BYTES:
            size, place = _varint(data, place)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("a group, which ONNX does not have")
        if place + size > end:
            raise ValueError("a field is longer than its message")
        yield field, place, place + size
        place += size
    if place > end:
        raise ValueError("a message is longer than the one around it")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
