"""The contract does not break those who use its released form; what would is found, by buf too where that is here."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deploy_tools import ROOT, tool
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from fathom.protos import compatibility
from fathom.protos.compatibility import RELEASED, breaking_changes, current, released

PROTOS = ROOT / "protos"
Change = Callable[[FileDescriptorProto], object]


def named(values: Any, name: str) -> Any:
    return next(each for each in values if each.name == name)


def fields(file: FileDescriptorProto, message: str = "RecommendRequest") -> Any:
    return named(file.message_type, message).field


def reasons(file: FileDescriptorProto) -> Any:
    return named(file.enum_type, "DepthReason").value


def removed(values: Callable[[FileDescriptorProto], Any], name: str) -> Change:
    return lambda file: values(file).remove(named(values(file), name))


def altered(values: Callable[[FileDescriptorProto], Any], old: str, **new: Any) -> Change:
    """With other values of some of its attributes."""

    def change(file: FileDescriptorProto) -> None:
        found = named(values(file), old)
        for key, value in new.items():
            setattr(found, key, value)

    return change


def methods(file: FileDescriptorProto) -> Any:
    return file.service[0].method


def no_longer_optional(file: FileDescriptorProto) -> None:
    depth = named(fields(file), "depth")
    depth.proto3_optional = False
    depth.ClearField("oneof_index")
    message = named(file.message_type, "RecommendRequest")
    message.oneof_decl.remove(named(message.oneof_decl, "_depth"))


def another_message(file: FileDescriptorProto) -> None:
    named(file.message_type, "Timings").name = "Times"
    named(fields(file, "RecommendResponse"), "timings").type_name = ".fathom.v1.Times"


K = "RecommendRequest.k (field 4)"
BREAKING: list[tuple[str, Change]] = [
    (f"{K} was removed", removed(fields, "k")),
    (f"{K} was removed", altered(fields, "k", number=99)),
    (f"{K}: its type was uint32 and is int32", altered(fields, "k", type=FieldDescriptorProto.TYPE_INT32)),
    (f"{K}: its name was k and is count", altered(fields, "k", name="count", json_name="count")),
    (f"{K}: its name in JSON was k and is K", altered(fields, "k", json_name="K")),
    (
        f"{K}: its cardinality was singular and is repeated",
        altered(fields, "k", label=FieldDescriptorProto.LABEL_REPEATED),
    ),
    ("RecommendRequest.depth (field 6): its cardinality was optional and is singular", no_longer_optional),
    (
        "RecommendRequest.filter (field 7): its type was fathom.v1.Filter and is fathom.v1.Rules",
        altered(fields, "filter", type_name=".fathom.v1.Rules"),
    ),
    ("DepthReason.DEPTH_REASON_SIMPLE (number 2) was removed", removed(reasons, "DEPTH_REASON_SIMPLE")),
    (
        "DepthReason.DEPTH_REASON_SIMPLE (number 2): its name was DEPTH_REASON_SIMPLE and is DEPTH_REASON_EASY",
        altered(reasons, "DEPTH_REASON_SIMPLE", name="DEPTH_REASON_EASY"),
    ),
    ("message Timings was removed", another_message),
    ("method Recommender.Reload was removed", removed(methods, "Reload")),
    (
        "method Recommender.Reload: output_type was .fathom.v1.ReloadResponse and is .fathom.v1.Item",
        altered(methods, "Reload", output_type=".fathom.v1.Item"),
    ),
    (
        "method Recommender.Reload: server_streaming was none and is True",
        altered(methods, "Reload", server_streaming=True),
    ),
    ("service Recommender was removed", altered(lambda file: file.service, "Recommender", name="Other")),
    (
        "fathom/v1/recommender.proto: option: go_package was fathom/v1;fathomv1 and is other",
        lambda file: setattr(file.options, "go_package", "other"),
    ),
]


def changed(change: Change) -> FileDescriptorSet:
    after = current()
    change(after.file[0])
    return after


def test_nothing_of_the_released_contract_is_broken() -> None:
    """Where this fails, undo the change, or begin a package fathom.v2 beside this one (docs/operating.md, Versions)."""
    assert breaking_changes(released(), current()) == []


@pytest.mark.parametrize(("says", "change"), BREAKING)
def test_what_breaks_is_named(says: str, change: Change) -> None:
    assert says in breaking_changes(current(), changed(change))


def test_what_is_added_breaks_nothing() -> None:
    def more(file: FileDescriptorProto) -> None:
        fields(file).add(name="new", number=99, type=5, label=1, json_name="new")
        reasons(file).add(name="DEPTH_REASON_NEW", number=99)
        file.message_type.add(name="New")
        methods(file).add(name="New", input_type=".fathom.v1.New", output_type=".fathom.v1.New")

    assert breaking_changes(current(), changed(more)) == []
    assert len(breaking_changes(changed(more), current())) == 4


def test_what_was_reserved_stays_so() -> None:
    def reserve(file: FileDescriptorProto) -> None:
        item = named(file.message_type, "Item")
        item.reserved_range.add(start=50, end=52)
        item.reserved_name.append("old")

    assert breaking_changes(changed(reserve), current()) == [
        "Item: the numbers 50 to 51 are no longer reserved",
        "Item: the name old is no longer reserved",
    ]


def test_a_contract_is_released_unless_it_breaks_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "released.json"
    monkeypatch.setattr(compatibility, "RELEASED", path)
    monkeypatch.setattr("sys.argv", ["compatibility", "--release"])
    assert compatibility.main() == 0
    assert json_format.Parse(path.read_text(), FileDescriptorSet()) == current()
    larger = current()
    larger.file[0].message_type.add(name="Gone")
    path.write_text(before := json_format.MessageToJson(larger))
    assert compatibility.main() == 1
    assert path.read_text() == before
    told = capsys.readouterr()
    assert told.out == "message Gone was removed\n"
    assert told.err.startswith("users of the released contract would break: undo this, or")


def test_names_are_as_generated_code_of_all_languages_wants_them() -> None:
    """Those rules of `buf lint` that a new name breaks most easily, where buf is not here."""
    file = current().file[0]
    assert file.name == f"{file.package.replace('.', '/')}/recommender.proto"
    assert re.fullmatch(r"fathom\.v\d+", file.package)
    for enum in file.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.value[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)
    for message in file.message_type:
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name)
        assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name) for field in message.field)


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("buf"), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=PROTOS)


def test_buf_has_nothing_to_say_of_the_contract() -> None:
    for command in (("lint",), ("breaking", "--against", RELEASED)):
        done = buf(*command)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(("says", "change"), BREAKING)
def test_buf_finds_what_is_found_here(says: str, change: Change, tmp_path: Path) -> None:
    path = tmp_path / "changed.json"
    path.write_text(json_format.MessageToJson(changed(change)))
    done = buf("breaking", path, "--against", RELEASED, "--config", '{"version":"v2","breaking":{"use":["FILE"]}}')
    assert done.returncode == 100, (says, done.stdout, done.stderr)
