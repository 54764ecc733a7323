"""A bundle opens whole, or is refused with the error that names the file."""

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fathom.errors import (
    BundleEditedError,
    BundleError,
    BundleMissingFileError,
    BundleSchemaError,
    BundleTruncatedError,
    NotFoundError,
)
from fathom.files import sha256_file
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.manifest import SCHEMA_VERSION, version_of

ENGINE = "engines/depth-04.onnx"


@pytest.fixture
def bundle(synthetic_bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest as a careful forger would: its version follows from it again."""
    file = bundle / "manifest.json"
    value = json.loads(file.read_text())
    edit(value)
    value["version"] = version_of(value)
    file.write_text(json.dumps(value))


def relist(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file that was replaced."""
    entry = {"bytes": (bundle / name).stat().st_size, "sha256": sha256_file(bundle / name)}
    edit_manifest(bundle, lambda value: value["files"].update({name: entry}))


def refused(bundle: Path, error: type[BundleError], *words: str, verify_too: bool = True) -> None:
    """Opening raises exactly this error in one line with these words, and ``verify`` says the same."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    text = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in text
    assert all(word in text for word in words), text
    if verify_too:
        assert [check.detail for check in verify(bundle) if not check.ok] == [text]


def test_an_intact_bundle_opens_with_everything_the_runtime_needs(synthetic_bundle: Path) -> None:
    with Bundle.open(synthetic_bundle) as bundle:
        assert bundle.depths == (4, 8, 12, 16)
        assert bundle.vectors.rows.shape == (50, 8)
        assert not bundle.vectors.rows.flags.writeable
        assert bundle.popularity.shape == (50,)
        assert bundle.catalogue.index["item-7"] == 7
        assert bundle.catalogue.titles[7] == ""
        assert bundle.segments(8) == ("engines/depth-04.onnx", "engines/depth-08.onnx")
        assert bundle.tables.vectors is bundle.vectors
    assert all(check.ok for check in verify(synthetic_bundle))
    assert len(verify(synthetic_bundle)) == len(bundle.manifest.files) + 3


def test_a_category_selects_its_items_and_two_select_the_union(synthetic_bundle: Path) -> None:
    catalogue = Bundle.open(synthetic_bundle).catalogue
    both = catalogue.category_mask(["drama", "space"])
    expected = [bool({"drama", "space"} & set(names)) for names in catalogue.categories]
    assert both.tolist() == expected
    with pytest.raises(NotFoundError, match="'opera'"):
        catalogue.category_mask(["opera"])


def test_no_folder_and_no_manifest_are_missing_files(tmp_path: Path, bundle: Path) -> None:
    refused(tmp_path / "nowhere", BundleMissingFileError, "no bundle here")
    refused(bundle / ENGINE, BundleMissingFileError, "no bundle here")
    (bundle / "manifest.json").unlink()
    refused(bundle, BundleMissingFileError, "no bundle here")


@pytest.mark.parametrize("name", [ENGINE, "items/vectors.npy", "items/catalogue.json", "selector/selector.json"])
def test_each_damage_to_a_file_has_its_own_error(bundle: Path, name: str) -> None:
    file = bundle / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(bundle, BundleTruncatedError, name)
    file.write_bytes(whole + b" ")
    refused(bundle, BundleTruncatedError, name)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(bundle, BundleEditedError, name)
    file.unlink()
    refused(bundle, BundleMissingFileError, name)
    file.mkdir()
    refused(bundle, BundleError, name, "a folder where a file is needed")


def test_without_verify_only_the_sha256_is_left_out(bundle: Path) -> None:
    file = bundle / ENGINE
    file.write_bytes(bytes(len(file.read_bytes())))
    Bundle.open(bundle, verify=False)
    file.write_bytes(b"short")
    with pytest.raises(BundleTruncatedError):
        Bundle.open(bundle, verify=False)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    edit_manifest(bundle, lambda value: value.update(schema_version=SCHEMA_VERSION + 1, invented_later={"x": 1}))
    refused(bundle, BundleSchemaError, "newer Fathom", "upgrade")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"schema_version": "1"}',
        b'{"schema_version": 1}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_not_a_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, BundleSchemaError, "not a manifest")


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v.pop("model"), "model"),
        (lambda v: v.update(depths={}), "depths"),
        (lambda v: v.update(items=0), "items"),
        (lambda v: v["files"].pop("items/vectors.npy"), "items/vectors.npy"),
        (lambda v: v["depths"]["8"].update(segments=["engines/other.onnx"]), "engines/other.onnx"),
        (lambda v: v["depths"]["8"].update(segments=[]), "segments"),
        (lambda v: v["depths"].update({"99": v["depths"]["8"]}), "99"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused(
    bundle: Path, edit: Callable[[dict[str, Any]], Any], word: str
) -> None:
    edit_manifest(bundle, edit)
    refused(bundle, BundleSchemaError, word)


def swap_layers(value: dict[str, Any]) -> None:
    layers = value["depths"]["8"]["layers"]
    layers[1], layers[2] = layers[2], layers[1]


def fit(**changes: Any) -> dict[str, Any]:
    whole = {"memory_limit_mb": 100, "threads": 1, "peak_mb": 50.0, "machine": "here", "created": "now"}
    return {"cloud": whole | changes}


def plan(**changes: Any) -> list[dict[str, Any]]:
    engines = [f"engines/depth-{depth:02d}.onnx" for depth in (4, 8, 12, 16)]
    whole = {"version": "1", "compute_capability": "8.9", "max_batch": 8, "histories": [10, 20]}
    segments = {name: f"plans/{place}" for place, name in enumerate(engines)}
    return [whole | {"segments": segments, "built_from": dict.fromkeys(engines, "0" * 64)} | changes]


def extension(steps: dict[str, str]) -> dict[str, Any]:
    segments = {depth: f"engines/extend-{int(depth):02d}.onnx" for depth in ("4", "8", "12", "16")}
    files = {"context": "engines/extend-context.onnx", "segments": segments, "steps": steps}
    return {"span": 10, "max_abs_error": 0.0, **files}


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda v: v["depths"]["16"].update(segments=v["depths"]["4"]["segments"]), "depth 16 runs engines/depth-04"),
        (
            lambda v: v["depths"]["16"].update(segments=["engines/depth-16.onnx"]),
            "shallower ones first",
        ),
        (lambda v: v["depths"]["8"]["segments"].reverse(), "depth 8 runs"),
        (lambda v: v["depths"]["8"]["segments"].append("items/vectors.npy"), "depth 8 runs"),
        (lambda v: v["depths"].update({"5": v["depths"].pop("4")}), "depth 5 executes 4 layers"),
        (lambda v: v["depths"]["4"].update(layers=[0, 1, 2, 2]), "depth 4 executes 3 layers"),
        (lambda v: v["depths"]["4"].update(layers=[1, 2, 3, 4]), "layer 0"),
        (lambda v: v["depths"]["16"]["layers"].__setitem__(15, 16), "layer that the model does not have"),
        (swap_layers, "another order than prefix"),
        (lambda v: v["depths"]["4"]["quality"]["ndcg@10"].update(value=2.0), "quality ndcg@10 of depth 4"),
        (lambda v: v["depths"]["4"]["quality"]["ndcg@10"].update(low=0.5), "quality ndcg@10 of depth 4"),
        (lambda v: v["depths"]["4"]["parity"].update(max_abs_error=-1), "max_abs_error"),
        (lambda v: v["depths"]["4"]["parity"].update(top10_agreement=1.1), "top10_agreement"),
        (lambda v: v.update(format="ort"), "depth 4 runs"),
        (lambda v: v.update(format="executorch"), "depth 4 runs"),
        (lambda v: v["model"].update(heads=-2), "model.heads"),
        (lambda v: v["model"].update(heads=3), "not a multiple of 3 heads"),
        (lambda v: v["model"].update(width=10**9), "model.width"),
        (lambda v: v["model"].update(max_history=10**18), "model.max_history"),
        (lambda v: v["model"].update(layers=33), "model.layers"),
        (lambda v: v.update(items=10**12), "items"),
        (lambda v: v.update(name=""), "name"),
        (lambda v: v.update(name="a\nb"), "name"),
        (lambda v: v.update(name="x" * 1000), "name"),
        (lambda v: v.update(layer_precision={"16": "int8"}), "layer_precision"),
        (lambda v: v.update(fits=fit(peak_mb=-1.0)), "peak_mb"),
        (lambda v: v.update(plans=plan(built_from={})), "not of the bundle's engines"),
        (lambda v: v.update(plans=plan(histories=[20, 10])), "do not ascend"),
        (lambda v: v.update(plans=plan(histories=[10])), "do not ascend"),
        (lambda v: v.update(plans=plan()), "does not list plans/0"),
        (lambda v: v.update(extension=extension({"4": "engines/step-08.onnx"})), "each step after its depth"),
        (lambda v: v.update(extension=extension({"4": "engines/step-04.onnx"})), "steps of other depths"),
        (
            lambda v: v.update(extension=extension({d: f"engines/step-{int(d):02d}.onnx" for d in v["depths"]})),
            "does not list engines/",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, edit: Callable[[dict[str, Any]], Any], word: str
) -> None:
    edit_manifest(bundle, edit)
    with pytest.raises(BundleSchemaError, match=word) as caught:
        Bundle.open(bundle)
    assert len(str(caught.value)) < 300
    value = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(value | {"schema_version": 4}))
    with pytest.raises(BundleSchemaError, match=word):
        Bundle.open(bundle)


def test_two_depths_may_not_run_one_engine_where_each_has_its_own(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(strategy="nested")
    Bundle.open(bundle)
    edit_manifest(bundle, lambda v: v["depths"]["16"].update(segments=["engines/depth-04.onnx"]))
    refused(bundle, BundleSchemaError, "depth 16 runs engines/depth-04.onnx")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"schema_version": 5, "schema_version": 5}', "twice"),
        (b'{"schema_version": NaN}', "NaN"),
        (b'{"schema_version": 5, "items": 1e999}', "too large"),
        (b'{"schema_version": 5, "name": "\\ud800"}', "surrogate"),
        (b'{"schema_version": ' + b"1" * 5000 + b"}", "4300 digits"),
    ],
)
def test_json_that_only_some_readers_accept_is_refused(bundle: Path, content: bytes, word: str) -> None:
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, BundleSchemaError, word)


def test_a_manifest_of_an_older_schema_is_read_with_its_own_version(bundle: Path) -> None:
    for schema in (1, 2, 3, 4):
        edit_manifest(bundle, lambda v, schema=schema: v.update(schema_version=schema))
        before = Bundle.open(bundle).manifest.version
        edit_manifest(bundle, lambda v: v.update(name="other"))
        assert Bundle.open(bundle).manifest.version == before


def test_a_certificate_holds_for_what_each_depth_runs_and_old_ones_in_old_bundles(
    certified_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(certified_bundle, tmp_path / "bundle"))
    edit_manifest(bundle, lambda v: v["model"].update(max_history=19))
    refused(bundle, BundleError, "certifies another depth 4")
    edit_manifest(bundle, lambda v: v["model"].update(max_history=20))
    Bundle.open(bundle)
    file = bundle / "selector/certificate.json"
    value = json.loads(file.read_text())
    promise = value.pop("promises")["quality"]
    for key in ("floor", "below", "merged"):
        del promise[key]
    for claim in value["claims"]:
        del claim["kind"], claim["under"]
    del value["depths"]
    file.write_text(json.dumps(value | promise | {"schema_version": 1, "metric": "ndcg@10", "seed": 0}))
    relist(bundle, "selector/certificate.json")
    refused(bundle, BundleError, "certifies another depth 0")
    edit_manifest(bundle, lambda v: v.update(schema_version=4))
    assert Bundle.open(bundle).certificate is not None


def test_an_edited_list_of_files_no_longer_makes_the_version(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace('"bytes": ', '"bytes": 1', 1))
    refused(bundle, BundleEditedError, "version")


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "items/../../outside.bin", "..\\outside.bin", ""])
def test_a_listed_path_cannot_leave_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "outside.bin").write_bytes(b"x")
    entry = {"bytes": 1, "sha256": sha256_file(bundle.parent / "outside.bin")}
    edit_manifest(bundle, lambda value: value["files"].update({name: entry}))
    refused(bundle, BundleError, "no plain path inside the bundle")


def test_a_symbolic_link_cannot_leave_the_folder(bundle: Path) -> None:
    outside = bundle.parent / "outside.onnx"
    (bundle / ENGINE).rename(outside)
    (bundle / ENGINE).symlink_to(outside)
    refused(bundle, BundleError, "a link; a bundle holds files only")


def test_a_bundle_behind_a_link_opens(synthetic_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(synthetic_bundle)
    assert Bundle.open(tmp_path / "current").manifest.items == 50


def _catalogue(**changes: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        value = json.loads(file.read_text())
        file.write_text(json.dumps(value | changes))

    return write


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones((50, 8), np.float32))
    return buffer.getvalue()


def _array(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: np.save(file, array)


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("items/catalogue.json", _catalogue(ids=["a"]), "50 items"),
        ("items/catalogue.json", _catalogue(ids=["a"] * 50), "twice"),
        ("items/catalogue.json", _catalogue(titles=None), "titles"),
        ("items/catalogue.json", _catalogue(titles=[7] * 50), "texts"),
        ("items/catalogue.json", _catalogue(ids=list(range(50))), "texts"),
        ("items/catalogue.json", _catalogue(ids=[*map(str, range(49)), "\ud800"]), "surrogate"),
        ("items/catalogue.json", _catalogue(ids=["", *map(str, range(49))]), "empty"),
        ("items/catalogue.json", _catalogue(categories=["drama"] * 50), "texts"),
        ("items/catalogue.json", _catalogue(more=[]), "nothing else"),
        ("items/vectors.npy", lambda file: file.write_bytes(_npz()), "npz"),
        ("items/vectors.npy", _array(np.asfortranarray(np.ones((50, 8), np.float32))), "'fortran_order': True"),
        ("items/vectors.npy", _array(np.ones((50, 8), ">f4")), "'>f4'"),
        ("items/vectors.npy", lambda file: file.write_bytes(file.read_bytes()[:-4]), "1596 bytes of values"),
        ("items/popularity.npy", _array(np.full(50, 2**62)), "too large"),
        ("items/catalogue.json", lambda file: file.write_text("[]"), "object"),
        ("items/catalogue.json", lambda file: file.write_bytes(b"\xff"), "not JSON"),
        ("items/vectors.npy", _array(np.ones((50, 8))), "'<f8'"),
        ("items/vectors.npy", _array(np.ones((50, 7), np.float32)), "(50, 8)"),
        ("items/vectors.npy", _array(np.full((50, 8), np.nan, np.float32)), "unit"),
        ("items/vectors.npy", lambda file: file.write_bytes(b"no array"), "not an array"),
        ("items/popularity.npy", _array(np.full(50, -1)), "negative"),
        ("items/transition_entropy.npy", _array(np.full(50, -1, np.float32)), "negative"),
        ("items/transition_entropy.npy", _array(np.full(50, np.inf, np.float32)), "too large"),
        ("selector/selector.json", lambda file: file.write_text("{}"), "not a selector"),
    ],
)
def test_contents_that_contradict_the_manifest_are_refused(
    bundle: Path, name: str, damage: Callable[[Path], None], word: str
) -> None:
    damage(bundle / name)
    relist(bundle, name)
    refused(bundle, BundleError, name, word)


def test_a_bundle_of_before_complexity_was_learned_is_served_as_it_was(bundle: Path) -> None:
    scale = {"values": [1.0, 20.0], "ranks": [0.0, 1.0]}
    combined = {"values": [0.0, 1.0], "ranks": [0.0, 1.0]}
    value = {"schema_version": 1, "weights": {"length": 1.0}, "scales": {"length": scale}, "combined": combined}
    (bundle / "selector/selector.json").write_text(json.dumps(value | {"histories": 9}))
    relist(bundle, "selector/selector.json")
    features, complexity = Bundle.open(bundle).inspect(np.arange(20), None, brief=True)
    assert np.isnan(features.min_popularity)
    assert complexity == 1.0
    assert Bundle.open(bundle).inspect(np.array([3]), None)[1] == 0.0


def test_opening_twelve_thousand_items_is_quick(uncounted_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(uncounted_bundle, tmp_path / "bundle"))
    n = 12_000
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    np.save(bundle / "items/vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    np.save(bundle / "items/popularity.npy", np.ones(n, np.int64))
    np.save(bundle / "items/transition_entropy.npy", np.ones(n, np.float32))
    names = [f"item number {i}" for i in range(n)]
    catalogue = {"ids": names, "titles": names, "categories": [["a", f"c{i % 300}"] for i in range(n)]}
    (bundle / "items/catalogue.json").write_text(json.dumps(catalogue))
    for name in ("vectors.npy", "popularity.npy", "transition_entropy.npy", "catalogue.json"):
        relist(bundle, f"items/{name}")
    edit_manifest(bundle, lambda value: value.update(items=n))
    # Of the processor, so that it does not hang on what else a machine does.
    start_s = time.process_time()
    Bundle.open(bundle)
    assert time.process_time() - start_s < 1.0
