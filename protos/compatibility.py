"""Whether the contract still fits those who use its released form, on the wire, in JSON and in generated code.

    python -m fathom.protos.compatibility             # what has been broken since the release; the tests ask it too
    python -m fathom.protos.compatibility --release   # the contract as it is now is the released one

The rules are those of `buf breaking` (categories FILE and WIRE_JSON) that a contract in proto3 can break.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from fathom.protos.fathom.v1 import recommender_pb2

#: The released contract: a FileDescriptorSet in protobuf's JSON, which `buf` reads as an image.
RELEASED = Path(__file__).parent / "released.json"

#: Options of a file by which generated code is named.
_OPTIONS = ("go_package", "java_package", "java_multiple_files", "java_outer_classname", "csharp_namespace")


def current() -> FileDescriptorSet:
    """The contract as the generated code has it, with the names in JSON, which that leaves out."""
    found = FileDescriptorSet()
    recommender_pb2.DESCRIPTOR.CopyToProto(found.file.add())
    for _, message in _messages(found.file[0]):
        for field in message.field:
            field.json_name = field.json_name or _camel(field.name)
    return found


def released() -> FileDescriptorSet:
    """The contract that clients may have been built from."""
    return json_format.Parse(RELEASED.read_text(encoding="utf-8"), FileDescriptorSet())


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What of ``new`` does not fit users of ``old``, a line each."""
    files = {file.name: file for file in new.file}
    return [
        change
        for file in old.file
        for change in (_file(file, files[file.name]) if file.name in files else [f"{file.name} was removed"])
    ]


def _file(old: FileDescriptorProto, new: FileDescriptorProto) -> Iterator[str]:
    yield from _differences(old.name, old, new, ("package", "syntax"))
    yield from _differences(f"{old.name}: option", old.options, new.options, _OPTIONS)
    messages, enums = dict(_messages(new)), dict(_enums(new))
    for name, message in _messages(old):
        yield from _message(name, message, messages[name]) if name in messages else [f"message {name} was removed"]
    for name, enum in _enums(old):
        yield from _enum(name, enum, enums[name]) if name in enums else [f"enum {name} was removed"]
    services = {each.name: each for each in new.service}
    for service in old.service:
        known = services.get(service.name)
        yield from [f"service {service.name} was removed"] if known is None else _service(service, known)


def _messages(within: Any, prefix: str = "") -> Iterator[tuple[str, DescriptorProto]]:
    """All messages of a file, or of a message, with their names."""
    for message in within.message_type if isinstance(within, FileDescriptorProto) else within.nested_type:
        yield prefix + message.name, message
        yield from _messages(message, f"{prefix}{message.name}.")


def _enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    yield from ((enum.name, enum) for enum in file.enum_type)
    for name, message in _messages(file):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def _message(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in new.field}
    for field in old.field:
        what = f"{name}.{field.name} (field {field.number})"
        if (known := fields.get(field.number)) is None:
            yield f"{what} was removed"
            continue
        before, after = _traits(field, old), _traits(known, new)
        for trait, was in before.items():
            if after[trait] != was:
                yield f"{what}: its {trait} was {was} and is {after[trait]}"
    yield from _reserved(name, old, new)


def _traits(field: FieldDescriptorProto, message: DescriptorProto) -> Mapping[str, str]:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    cardinality = "repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else "singular"
    oneof = ""
    if field.proto3_optional:
        cardinality = "optional"
    elif field.HasField("oneof_index"):
        oneof = message.oneof_decl[field.oneof_index].name
    return {
        "name": field.name,
        "name in JSON": field.json_name,
        "type": field.type_name.removeprefix(".") or kind,
        "cardinality": cardinality,
        "oneof": oneof or "none",
    }


def _camel(name: str) -> str:
    """As protoc names a field in JSON."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _enum(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    names: dict[int, set[str]] = {}
    for value in new.value:
        names.setdefault(value.number, set()).add(value.name)
    for value in old.value:
        what = f"{name}.{value.name} (number {value.number})"
        if value.number not in names:
            yield f"{what} was removed"
        elif value.name not in names[value.number]:
            yield f"{what}: its name was {value.name} and is {', '.join(sorted(names[value.number]))}"
    yield from _reserved(name, old, new)


def _reserved(name: str, old: Any, new: Any) -> Iterator[str]:
    ranges = [(each.start, each.end) for each in new.reserved_range]
    for each in old.reserved_range:
        # A message's range ends before its end, an enum's with it.
        last = each.end - isinstance(old, DescriptorProto)
        if not any(start <= each.start and each.end <= end for start, end in ranges):
            yield f"{name}: the numbers {each.start} to {last} are no longer reserved"
    for gone in sorted(set(old.reserved_name) - set(new.reserved_name)):
        yield f"{name}: the name {gone} is no longer reserved"


def _service(old: ServiceDescriptorProto, new: ServiceDescriptorProto) -> Iterator[str]:
    methods = {method.name: method for method in new.method}
    traits = ("input_type", "output_type", "client_streaming", "server_streaming")
    for method in old.method:
        what = f"method {old.name}.{method.name}"
        if method.name not in methods:
            yield f"{what} was removed"
        else:
            yield from _differences(what, method, methods[method.name], traits)


def _differences(what: str, old: Any, new: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{what}: {name} was {before or 'none'} and is {after or 'none'}"


def main() -> int:
    """Print what is broken, or release; returns the exit code."""
    if sys.argv[1:] not in ([], ["--release"]):
        print("usage: python -m fathom.protos.compatibility [--release]", file=sys.stderr)
        return 2
    changes = breaking_changes(released(), current()) if RELEASED.exists() else []
    for change in changes:
        print(change)
    if changes:
        print("users of the released contract would break: undo this, or begin the package fathom.v2", file=sys.stderr)
        return 1
    if sys.argv[1:]:
        part = RELEASED.with_suffix(".part")
        part.write_text(json_format.MessageToJson(current(), indent=1) + "\n", encoding="utf-8")
        part.replace(RELEASED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
