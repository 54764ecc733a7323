"""A bundle in the .ort format: the same answers, no ONNX left, and the operators that a phone's build needs."""

from pathlib import Path

import numpy as np
import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.formats.ort import OPERATORS_FILE, convert_to_ort
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.incremental import CachedHistory
from fathom.runtime.engines.open import open_engine


def test_a_converted_bundle_answers_as_the_first_does(bundle_path: Path, tmp_path: Path) -> None:
    manifest = convert_to_ort(bundle_path, tmp_path / "phone")
    assert manifest.format == "ort"
    assert all(check.ok for check in verify(tmp_path / "phone"))
    assert not [*(tmp_path / "phone").rglob("*.onnx")]
    items = np.array([[1, 2, 3, 4, 5]])
    times = 1_600_000_000 + 3_600 * items
    with (
        Bundle.open(bundle_path) as one,
        Bundle.open(tmp_path / "phone") as two,
        open_engine(one, incremental=True) as before,
        open_engine(two, incremental=True) as after,
    ):
        assert one.manifest.version != two.manifest.version
        assert after.depths == before.depths
        for depth in after.depths:
            assert after.run(items, times, depth) == pytest.approx(before.run(items, times, depth), abs=1e-5)
            resumed = [
                e.run_incremental([CachedHistory(items[0], times[0], None)], [depth])[0] for e in (before, after)
            ]
            assert resumed[1] == pytest.approx(resumed[0], abs=1e-5)


def test_the_operators_that_a_build_needs_are_listed(bundle_path: Path, tmp_path: Path) -> None:
    convert_to_ort(bundle_path, tmp_path / "phone")
    listed = (tmp_path / "phone" / OPERATORS_FILE).read_text().splitlines()
    operators = {name for line in listed if line.startswith("ai.onnx;") for name in line.split(";")[2].split(",")}
    assert {"MatMul", "LayerNormalization", "Gather"} <= operators
    assert not any("/" in line for line in listed)


def test_the_page_lists_every_operator_of_a_bundle(bundle_path: Path, tmp_path: Path) -> None:
    convert_to_ort(bundle_path, tmp_path / "phone")
    listed = (tmp_path / "phone" / OPERATORS_FILE).read_text().splitlines()
    needed = {
        (line.split(";")[0], name)
        for line in listed
        if line and not line.startswith("#")
        for name in line.split(";")[2].split(",")
    }
    page = (Path(__file__).parents[2] / "docs" / "phones.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| ai.onnx", "| com."))]
    assert needed - {(row[0], name) for row in rows for name in row[1].split(", ")} == set()


def test_a_converted_bundle_can_be_cut_but_not_converted_again(bundle_path: Path, tmp_path: Path) -> None:
    convert_to_ort(bundle_path, tmp_path / "phone")
    slice_bundle(tmp_path / "phone", load_profile("mobile"), tmp_path / "small")
    with Bundle.open(tmp_path / "small") as small:
        assert set(small.depths) == {4, 8}
    with pytest.raises(ConfigError, match="its engines are ort; only onnx can be converted"):
        convert_to_ort(tmp_path / "phone", tmp_path / "again")
    with pytest.raises(ConfigError, match="cannot replace the one that it is made from"):
        convert_to_ort(bundle_path, bundle_path)
