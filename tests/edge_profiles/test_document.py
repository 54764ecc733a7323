"""Reading YAML with line numbers: whatever the bytes, the answer is a document, never a crash."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.document import read_document
from fathom.edge_profiles.profile import DeviceProfile, check

# fmt: off
PIECES = [
    "name", "depths", "threads", "device", ": ", ":", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a",
    "!!int ", "!!timestamp ", "!!bool ", "!!float ", "!!null ", "!!map ", "!!seq ", "!!pairs ", "!!merge ",
    "!!python/name:os.system ", "<<: ", "? ", "> ", "| ", "'", '"', "#", "---\n", "...\n", "%YAML 1.1\n", "1", "0x_",
    "2026-13-45", ".nan", "1e999", "\t", "\x00", "é", "12:61", "=", "~", "!!binary ", "!!set ", "!!omap ",
]
# fmt: on
YAML_PIECES = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | YAML_PIECES.map(str.encode))
def test_any_bytes_give_a_profile_or_a_list_of_one_line_problems(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_bytes(data)
        found = check(path)
        assert isinstance(found, DeviceProfile) or (found and all(len(p.splitlines()) == 1 for p in found))


@pytest.mark.parametrize("text", ["a: " + "[" * 5_000, "a: &x [*x]", "a: &x {b: *x}", "&x a: *x", "a: {b: {c: {}}}"])
def test_deep_and_recursive_values_are_survived(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text, encoding="utf-8")
    assert isinstance(check(path), list)


def test_the_line_of_a_missing_key_is_that_of_the_mapping_around_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# first\nname: x\ndevice:\n  model: y\n", encoding="utf-8")
    document = read_document(path)
    assert document.values == {"name": "x", "device": {"model": "y"}}
    assert document.line(("device", "model")) == 4
    assert document.line(("device", "cpu_cores")) == 3
    assert document.line(("threads",)) == 1
