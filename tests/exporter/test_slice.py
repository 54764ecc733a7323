"""A slice holds what one profile needs, opens like any bundle, and needs no torch to be cut."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import fathom

from fathom.edge_profiles.profile import DeviceProfile, load_profile
from fathom.errors import BundleEditedError, ConfigError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.bundle.slice import cut_depths, slice_bundle
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import DeviceCheck
from fathom.runtime.manifest_file import read_manifest


def profile(*depths: int) -> DeviceProfile:
    changed = {"name": "mine", "depths": depths, "shallow": depths[0], "deep": depths[-1]}
    return load_profile("phone-high").model_copy(update=changed)


def test_a_bundle_of_another_precision_is_cut_only_where_that_is_asked_for(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    slice_it = ["bundle", "slice", synthetic_bundle, "--profile", "phone-low", "--out", tmp_path / "small"]
    said = fathom(*slice_it, code=2).stderr
    assert "layers and item vectors are fp32 and fp32, and profile phone-low says int8 and int8" in said
    assert not (tmp_path / "small").exists()
    fathom(*slice_it, "--any-precision")
    assert read_manifest(tmp_path / "small").profile == "phone-low"
    fathom("bundle", "slice", synthetic_bundle, "--profile", "cloud", "--out", tmp_path / "cloud")


def engines(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "engines").iterdir())


def test_a_slice_of_a_chain_keeps_the_segments_before(synthetic_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "slice"
    manifest = slice_bundle(synthetic_bundle, profile(8), out)
    assert engines(out) == ["depth-04.onnx", "depth-08.onnx"]
    assert manifest.profile == "mine"
    assert all(check.ok for check in verify(out))
    with Bundle.open(out) as small, Bundle.open(synthetic_bundle) as whole:
        assert small.depths == (8,)
        assert small.manifest == manifest
        assert small.manifest.version != whole.manifest.version
        assert small.manifest.depths[8] == whole.manifest.depths[8]
        assert small.manifest.created == whole.manifest.created
        assert open_engine(small).depths == (8,)


def test_a_slice_of_whole_engines_keeps_only_its_own(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    slice_bundle(make_bundle(strategy="nested"), profile(8, 16), tmp_path / "slice")
    assert engines(tmp_path / "slice") == ["depth-08.onnx", "depth-16.onnx"]


def test_a_slice_keeps_the_steps_of_its_depths(tiny_build: Path, tmp_path: Path) -> None:
    with Bundle.open(tiny_build / "bundle") as whole:
        depth = whole.depths[0]
        assert whole.manifest.extension is not None
        assert set(whole.manifest.extension.steps) == set(whole.depths)
    manifest = slice_bundle(tiny_build / "bundle", profile(depth), tmp_path / "slice")
    assert manifest.extension is not None
    assert set(manifest.extension.steps) == {depth}
    assert [file for file in engines(tmp_path / "slice") if "step" in file] == [f"step-{depth:02d}.onnx"]
    with Bundle.open(tmp_path / "slice") as small, open_engine(small, incremental=True) as engine:
        assert engine.incremental


def test_the_same_slice_has_the_same_version(synthetic_bundle: Path, tmp_path: Path) -> None:
    one, two = (slice_bundle(synthetic_bundle, profile(4, 8), tmp_path / name) for name in "ab")
    assert one == two


def test_a_slice_can_be_sliced(synthetic_bundle: Path, tmp_path: Path) -> None:
    slice_bundle(synthetic_bundle, profile(4, 8), tmp_path / "a")
    assert slice_bundle(tmp_path / "a", profile(4), tmp_path / "b").depths.keys() == {4}


def test_some_depths_can_be_cut_for_no_profile(synthetic_bundle: Path, tmp_path: Path) -> None:
    fathom("bundle", "slice", synthetic_bundle, "--depths", "4", "--out", tmp_path / "shallow")
    assert engines(tmp_path / "shallow") == ["depth-04.onnx"]
    assert read_manifest(tmp_path / "shallow").profile == read_manifest(synthetic_bundle).profile
    with pytest.raises(ConfigError, match="has depths 4, 8, 12, 16, not 4, 6"):
        cut_depths(synthetic_bundle, (4, 6), tmp_path / "none")


def test_what_was_found_on_a_device_does_not_hold_for_fewer_depths(synthetic_bundle: Path, tmp_path: Path) -> None:
    found = DeviceCheck(
        memory_limit_mb=64, threads=1, peak_mb=None, words="too large", machine="a phone", created="2026-11-30"
    )
    with Bundle.open(synthetic_bundle) as bundle:
        derive_bundle(bundle, tmp_path / "checked", fits={"phone-low": found})
    assert cut_depths(tmp_path / "checked", (4,), tmp_path / "shallow").fits == {}


@pytest.mark.parametrize("kept", [[], ["--profile", "cloud", "--depths", "4"]])
def test_a_slice_is_for_a_profile_or_of_some_depths(synthetic_bundle: Path, tmp_path: Path, kept: list[str]) -> None:
    said = fathom("bundle", "slice", synthetic_bundle, *kept, "--out", tmp_path / "small", code=2).stderr
    assert "either --profile, as cloud, or --depths, as 4,8" in said


def test_every_shipped_tier_can_be_cut(synthetic_bundle: Path, tmp_path: Path) -> None:
    for tier in ("mobile", "edge", "cloud"):
        manifest = slice_bundle(synthetic_bundle, load_profile(tier), tmp_path / tier)
        assert set(manifest.depths) == set(load_profile(tier).depths) & {4, 8, 12, 16}


def test_a_profile_without_common_depths_is_refused(synthetic_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has depths 4, 8, 12, 16 but profile mine runs 6, 10"):
        slice_bundle(synthetic_bundle, profile(6, 10), tmp_path / "slice")
    assert not list(tmp_path.iterdir())


def test_a_slice_does_not_replace_its_source(synthetic_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="choose another folder"):
        slice_bundle(synthetic_bundle, profile(4), synthetic_bundle / ".." / synthetic_bundle.name)


def test_an_edited_source_is_refused(synthetic_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "edited"
    shutil.copytree(synthetic_bundle, source)
    file = source / "items" / "catalogue.json"
    file.write_bytes(file.read_bytes().replace(b"Title", b"Tutle", 1))
    with pytest.raises(BundleEditedError):
        slice_bundle(source, profile(4), tmp_path / "slice")
    assert not (tmp_path / "slice").exists()


def test_cutting_and_reporting_load_no_torch() -> None:
    code = (
        "import sys, fathom.exporter.bundle.slice, fathom.exporter.bundle.report, fathom.exporter.planning.plan;"
        "print(sorted({'torch', 'polars', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
