"""Between JSON and messages: protobuf's JSON mapping, and fields from paths and queries."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fathom.errors import InvalidRequestError, brief

_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_NATURALS = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_REALS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_json(body: bytes, message: Message) -> None:
    """Fill a message from JSON; raises InvalidRequestError, in one line, where it is none of that kind."""
    try:
        json_format.Parse(body or b"{}", message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequestError(f"the body is no JSON of {message.DESCRIPTOR.name}: {brief(reason, 200)}") from None


def written_json(message: Message) -> bytes:
    """A message as JSON, with names in lowerCamelCase; fields that are not set are left out."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()


def set_fields(message: Message, given: Iterable[tuple[str, str]]) -> None:
    """Set fields from texts; a name may lead into messages, as ``filter.include_seen``, and recur if it is repeated.

    Raises InvalidRequestError for a name that is no field, or a text that is no value of it.
    """
    for name, text in given:
        inner, path = message, name.split(".")
        for part in path[:-1]:
            field = _field(inner, part, name)
            if field.message_type is None or field.is_repeated:
                raise InvalidRequestError(f"{brief(name)} is no field of {message.DESCRIPTOR.name}")
            inner = getattr(inner, field.name)
        _set(inner, _field(inner, path[-1], name), text, name)


def _field(message: Message, part: str, name: str) -> FieldDescriptor:
    fields: Any = message.DESCRIPTOR
    field = fields.fields_by_name.get(part) or fields.fields_by_camelcase_name.get(part)
    if field is None:
        raise InvalidRequestError(f"{brief(name)} is no field of {message.DESCRIPTOR.name}")
    found: FieldDescriptor = field
    return found


def _set(message: Message, field: FieldDescriptor, text: str, name: str) -> None:
    if field.message_type is not None:
        raise InvalidRequestError(f"{brief(name)} holds other fields; send it in the body of a POST")
    try:
        value = _value(field, text)
        if field.is_repeated:
            values: Sequence[Any] = getattr(message, field.name)
            values.append(value)  # type: ignore[attr-defined]
        else:
            setattr(message, field.name, value)
    except (ValueError, KeyError, TypeError):
        raise InvalidRequestError(f"{brief(name)} is {brief(text)!r}, which is no value of it") from None


def _value(field: FieldDescriptor, text: str) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS[text.lower()]
    if kind in _INTEGERS or kind in _NATURALS:
        return int(text)
    return float(text) if kind in _REALS else text
