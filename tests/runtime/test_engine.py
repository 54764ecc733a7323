"""What every Engine promises, and what onnxruntime's adds to it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import BundleEditedError, BundleError, BundleTruncatedError, ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines import onnx
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.session import open_session
from fathom.runtime.manifest import version_of
from fathom.runtime.padding import left_padded


def pad(histories: list[list[int]], length: int) -> np.ndarray:
    return np.array([[0] * (length - len(h)) + [i + 1 for i in h] for h in histories], dtype=np.int64)


HISTORIES = [[3, 1, 4, 1, 5], [9], list(range(20)), [49, 48]]


class EngineContract:
    """Inherited by the tests of every engine; their fixture ``engine`` serves depths 4, 8, 12, 16 of the synthetic
    catalogue."""

    def test_user_vectors_are_unit_float32_rows(self, engine: Engine) -> None:
        assert engine.name
        assert engine.depths == (4, 8, 12, 16)
        for depth in engine.depths:
            users = engine.run(pad(HISTORIES, 20), None, depth)
            assert users.dtype == np.float32
            assert users.shape == (4, 8)
            np.testing.assert_allclose(np.linalg.norm(users, axis=1), 1.0, atol=1e-5)

    def test_neither_padding_nor_company_changes_an_answer(self, engine: Engine) -> None:
        for depth in engine.depths:
            together = engine.run(pad(HISTORIES, 20), None, depth)
            alone = [engine.run(pad([h], len(h)), None, depth)[0] for h in HISTORIES]
            np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_equal_input_gives_equal_output(self, engine: Engine) -> None:
        items = pad(HISTORIES, 20)
        np.testing.assert_array_equal(engine.run(items, None, 8), engine.run(items.copy(), None, 8))

    def test_depths_differ(self, engine: Engine) -> None:
        items = pad([list(range(20))], 20)
        vectors = [engine.run(items, None, depth)[0] for depth in engine.depths]
        assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(vectors) for b in vectors[:i])

    def test_a_depth_it_does_not_have_is_a_key_error(self, engine: Engine) -> None:
        with pytest.raises(KeyError):
            engine.run(pad(HISTORIES, 20), None, 5)

    def test_every_row_of_a_batch_may_have_its_own_depth(self, engine: Engine) -> None:
        items = pad(HISTORIES, 20)
        rng = np.random.default_rng(1)
        for _ in range(5):
            depths = rng.choice(engine.depths, len(items)).tolist()
            found = engine.run_each(items, None, depths)
            for row, depth in enumerate(depths):
                np.testing.assert_allclose(found[row], engine.run(items[row : row + 1], None, depth)[0], atol=1e-5)

    def test_the_answer_belongs_to_the_caller(self, engine: Engine) -> None:
        items = pad(HISTORIES, 20)
        first = engine.run(items, None, 16)
        kept = first.copy()
        engine.run(items[::-1].copy(), None, 16)
        np.testing.assert_array_equal(first, kept)

    def test_closing_twice_is_fine(self, engine: Engine) -> None:
        engine.close()
        engine.close()


class TestFakeEngine(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return FakeEngine(Bundle.open(synthetic_bundle).vectors, (4, 8, 12, 16))


class TestOnnxEngine(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return open_engine(Bundle.open(synthetic_bundle))


def test_depths_are_mixed_where_they_share_their_layers(make_bundle) -> None:
    for strategy, mixes in {"prefix": True, "nested": False}.items():
        with open_engine(Bundle.open(make_bundle(strategy=strategy))) as engine:
            assert engine.mixes == mixes


class TestOnnxEngineNested(EngineContract):
    @pytest.fixture
    def engine(self, make_bundle) -> Engine:
        return open_engine(Bundle.open(make_bundle(strategy="nested")))


class TestOnnxEngineWithTimestamps(EngineContract):
    @pytest.fixture
    def engine(self, make_bundle) -> Engine:
        return open_engine(Bundle.open(make_bundle(timestamps=True)))


def test_engines_that_look_vectors_up_themselves_compute_the_same(make_bundle) -> None:
    items, depths = pad(HISTORIES, 20), (4, 16)
    with open_engine(Bundle.open(make_bundle())) as new, open_engine(Bundle.open(make_bundle(looks_up=True))) as old:
        assert old.run(items, None, 16) == pytest.approx(new.run(items, None, 16), abs=1e-6)
        for found, expected in zip(old.walk(items, None, depths), new.walk(items, None, depths), strict=True):
            assert found == pytest.approx(expected, abs=1e-6)


def test_a_chain_computes_what_the_onnx_reference_computes(synthetic_bundle: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    bundle = Bundle.open(synthetic_bundle)
    items = pad(HISTORIES, 20)
    with open_engine(bundle) as engine:
        for depth in bundle.depths:
            feeds = {"items": items, "item_vectors": bundle.vectors.padded(items)}
            for name in bundle.segments(depth):
                user, *rest = ReferenceEvaluator(str(synthetic_bundle / name)).run(None, feeds)
                feeds["hidden_in"] = rest[0] if rest else None
            np.testing.assert_allclose(engine.run(items, None, depth), user, atol=1e-5)


def test_timestamps_reach_the_model_and_missing_ones_are_zeros(make_bundle) -> None:
    engine = open_engine(Bundle.open(make_bundle(timestamps=True)))
    items = pad(HISTORIES, 20)
    times = np.where(items > 0, 1_700_000_000, 0)
    assert np.abs(engine.run(items, times, 8) - engine.run(items, None, 8)).max() > 1e-3
    np.testing.assert_array_equal(engine.run(items, np.zeros_like(items), 8), engine.run(items, None, 8))


def test_a_batch_with_too_many_positions_is_run_in_parts(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = np.random.default_rng(0).integers(1, 9, (7, 5))
    with Bundle.open(synthetic_bundle) as bundle, open_engine(bundle) as engine:
        expected = engine.run(items, None, 16)
        for most in (1, 5, 12, 34):
            monkeypatch.setattr("fathom.runtime.engines.onnx.MOST_POSITIONS", most)
            np.testing.assert_allclose(engine.run(items, np.zeros_like(items), 16), expected, atol=1e-6)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), most=st.integers(1, 400))
def test_every_history_runs_once_and_none_beside_much_longer_ones(lengths: list[int], most: int) -> None:
    ascending = np.sort(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "MOST_POSITIONS", most)
        parts = onnx._parts(ascending)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in parts:
        some = ascending[part]
        assert len(some) == 1 or len(some) * some[-1] <= most
        assert (some[-1] - some).sum() <= onnx.RUN_POSITIONS * (1 + np.log(len(some)))


def test_a_batch_of_short_and_long_histories_gives_what_each_gives_alone(synthetic_bundle: Path) -> None:
    rng = np.random.default_rng(1)
    histories = [rng.integers(1, 50, length) for length in (3, 70, 1, 64, 2, 40, 70, 5)]
    items = left_padded(histories, 70)
    times = left_padded([np.arange(1, len(each) + 1) for each in histories], 70)
    with Bundle.open(synthetic_bundle) as bundle, open_engine(bundle) as engine:
        assert len(onnx._parts(np.sort([len(each) for each in histories]))) > 1
        alone = [
            engine.run(row[None, -len(each) :], at[None, -len(each) :], 16)[0]
            for each, row, at in zip(histories, items, times, strict=True)
        ]
        np.testing.assert_allclose(engine.run(items, times, 16), alone, atol=1e-6)


def test_only_the_segments_of_the_asked_depths_are_loaded(synthetic_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(synthetic_bundle, tmp_path / "bundle")
    bundle = Bundle.open(copy)
    (copy / "engines/depth-16.onnx").unlink()
    assert open_engine(bundle, depths=[8, 4]).depths == (4, 8)


def test_a_session_does_not_keep_the_file_that_it_was_opened_from(synthetic_bundle: Path) -> None:
    with Bundle.open(synthetic_bundle) as bundle:
        data = bundle.read(bundle.segments(4)[0])
    before = sys.getrefcount(data)
    session = open_session(data, "an engine", 1)
    assert session.get_inputs()
    assert sys.getrefcount(data) == before


def test_a_depth_that_cannot_be_served_is_a_config_error(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    with pytest.raises(ConfigError, match="no depth 5; the bundle has 4, 8, 12, 16"):
        open_engine(bundle, depths=[4, 5])
    with pytest.raises(ConfigError, match="no depth asked for"):
        open_engine(bundle, depths=[])


def test_the_cpu_provider_is_the_one_that_runs(synthetic_bundle: Path) -> None:
    import onnxruntime

    path = synthetic_bundle / "engines/depth-04.onnx"
    elsewhere = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    elsewhere.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: elsewhere)
        with pytest.raises(ConfigError, match="CUDAExecutionProvider"):
            open_engine(Bundle.open(synthetic_bundle))


@pytest.mark.parametrize("content", [b"", b"no engine"])
def test_a_file_that_onnxruntime_refuses_is_a_bundle_error(
    synthetic_bundle: Path, tmp_path: Path, reseal: Callable[[Path], None], content: bytes
) -> None:
    copy = shutil.copytree(synthetic_bundle, tmp_path / "bundle")
    bundle = Bundle.open(copy)
    (copy / "engines/depth-04.onnx").write_bytes(content)
    with pytest.raises(BundleTruncatedError, match=r"depth-04\.onnx"):
        open_engine(bundle)
    reseal(copy)
    with pytest.raises(BundleError, match=r"depth-04\.onnx: (onnxruntime refuses|not an ONNX file)") as caught:
        open_engine(Bundle.open(copy))
    assert "\n" not in str(caught.value)


def test_an_engine_that_was_exchanged_after_it_was_checked_is_refused(synthetic_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    file = bundle.path / "engines/depth-12.onnx"
    file.write_bytes(bytes(reversed(file.read_bytes())))
    with pytest.raises(BundleEditedError, match=r"depth-12\.onnx: its sha256 differs"):
        open_engine(bundle)


@pytest.mark.parametrize(("batch", "width", "kind"), [("batch", 7, "FLOAT"), (1, 8, "FLOAT"), ("batch", 8, "DOUBLE")])
def test_an_engine_of_another_shape_than_the_manifest_says_is_refused(
    synthetic_bundle: Path, tmp_path: Path, reseal: Callable[[Path], None], batch: object, width: int, kind: str
) -> None:
    from onnx import TensorProto, helper

    copy = Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    kinds = getattr(TensorProto, kind)
    given = [helper.make_tensor_value_info("item_vectors", kinds, [batch, "history", width])]
    given += [helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", "history"])]
    made = [helper.make_tensor_value_info("hidden_out", kinds, [batch, "history", width])]
    made += [helper.make_tensor_value_info("user_vector", kinds, [batch, width])]
    nodes = [helper.make_node("Identity", ["item_vectors"], ["hidden_out"])]
    nodes += [helper.make_node("ReduceMax", ["item_vectors", "axis"], ["user_vector"], keepdims=0)]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    model = helper.make_model(
        helper.make_graph(nodes, "g", given, made, [axis]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    (copy / "engines/depth-04.onnx").write_bytes(model.SerializeToString())
    reseal(copy)
    with pytest.raises(BundleError, match=r"depth-04\.onnx: item_vectors is .* with width 8 is needed"):
        open_engine(Bundle.open(copy))


def test_an_engine_in_the_wrong_place_of_a_chain_is_refused(uncounted_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(uncounted_bundle, tmp_path / "bundle")
    file = copy / "manifest.json"
    value = json.loads(file.read_text())
    depths = value["depths"]
    for kept, segments in ((["8"], ["engines/depth-08.onnx"]), (["8", "16"], ["engines/depth-08.onnx"])):
        value["depths"] = {depth: depths[depth] for depth in kept}
        value["depths"]["8"]["segments"] = segments
        value["depths"][kept[-1]]["segments"] = list(
            dict.fromkeys([*segments, f"engines/depth-{int(kept[-1]):02d}.onnx"])
        )
        file.write_text(json.dumps(value | {"version": version_of(value)}))
        with pytest.raises(BundleError, match="not an engine for its place"):
            OnnxEngine(Bundle.open(copy), depths=(8,), threads=1)
