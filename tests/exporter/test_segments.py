"""Engine files: which layers they hold, what they read and return, and that they compute what torch computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fathom.exporter.engines.engine_set import EngineSet, SegmentSpec, segment_specs
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.pieces import Pieces
from fathom.exporter.engines.segments import assemble, export_segments
from fathom.runtime.item_vectors import ItemVectors
from fathom.training.checkpoint import Checkpoint
from fathom.training.model import ElasticModel

VECTORS = ItemVectors(np.eye(4, dtype=np.float32))


def values(model: ElasticModel, batch: int, history: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(batch * 100 + history)
    items = torch.randint(1, model.config.items + 1, (batch, history), generator=generator)
    times = 1_600_000_000 + torch.randint(1, 10**6, (batch, history), generator=generator).cumsum(1)
    if batch > 1:
        items[0, : history // 2] = 0
        times[0, : history // 2] = 0
    return items, times if model.uses_timestamps else None


def check(model: ElasticModel, engines: EngineSet) -> None:
    for batch, history in [(1, 1), (1, 2), (3, 1), (2, 7), (5, model.config.max_history)]:
        items, times = values(model, batch, history)
        found = engines.run(items.numpy(), None if times is None else times.numpy())
        with torch.no_grad():
            for depth in model.depths:
                expected = model.user_vectors(items, times, depth=depth).numpy()
                assert found[depth] == pytest.approx(expected, abs=1e-5), (depth, batch, history)


def test_a_chain_holds_each_layer_once_and_the_exits_twice() -> None:
    paths = {2: (0, 1), 4: (0, 1, 2, 3), 5: (0, 1, 2, 3, 4)}
    assert segment_specs(paths) == (
        SegmentSpec(2, (0,), 1, first=True, feeds_next=True),
        SegmentSpec(4, (1, 2), 3, first=False, feeds_next=True),
        SegmentSpec(5, (3,), 4, first=False, feeds_next=False),
    )
    assert EngineSet(segment_specs(paths), {}, VECTORS).segments(4) == (
        "engines/depth-02.onnx",
        "engines/depth-04.onnx",
    )


def test_paths_that_are_no_chain_get_one_whole_engine_each() -> None:
    paths = {2: (0, 3), 3: (0, 1, 3)}
    assert segment_specs(paths) == (
        SegmentSpec(2, (0,), 3, first=True, feeds_next=False),
        SegmentSpec(3, (0, 1), 3, first=True, feeds_next=False),
    )
    assert EngineSet(segment_specs(paths), {}, VECTORS).segments(3) == ("engines/depth-03.onnx",)


def test_a_model_of_very_long_histories_computes_what_torch_computes(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.exporter.engines.segments.LONGEST_TABLE", 0)
    check(checkpoint.model, export_segments(checkpoint.model))


def test_a_chain_with_timestamps_computes_what_torch_computes(checkpoint: Checkpoint, engines: EngineSet) -> None:
    check(checkpoint.model, engines)


def test_whole_engines_compute_what_torch_computes(pieces: Pieces) -> None:
    paths = {4: (0, 2, 5, 9), 8: (0, 1, 2, 5, 9, 11, 13, 15), 12: tuple(range(12)), 16: tuple(range(16))}
    files = {spec.file: assemble(pieces, spec) for spec in segment_specs(paths)}
    model = pieces.model.with_paths(paths, "nested").eval()
    check(model, EngineSet.of(model, files))


def test_gated_layers_in_another_order_compute_what_torch_computes(
    make_checkpoint: Callable[..., Checkpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    paths = {1: (0,), 2: (0, 3), 4: (0, 3, 1, 2)}
    model = make_checkpoint(block="gated", layers=4, strategy="permuted-prefix", paths=paths).model
    engines = export_segments(model)
    assert capfd.readouterr() == ("", "")
    check(model, engines)


def test_models_of_one_shape_share_what_was_traced_but_no_weight(
    pieces: Pieces, engines: EngineSet, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    other = make_checkpoint(time_bias=True, seed=1).model
    assert engines.files
    assert Pieces(other).layer(0, last_only=False) is pieces.layer(5, last_only=False)
    check(other, export_segments(other))


def test_inputs_and_outputs_have_the_documented_names_and_shapes(engines: EngineSet) -> None:
    def signature(file: str) -> tuple[dict[str, list[str | int]], dict[str, list[str | int]]]:
        graph = onnx.load_from_string(engines.files[file]).graph
        shapes = [
            {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in side}
            for side in (graph.input, graph.output)
        ]
        return shapes[0], shapes[1]

    times = {"timestamps": ["batch", "history"]}
    hidden, user = ["batch", "history", 16], {"user_vector": ["batch", 16]}
    assert signature("engines/depth-04.onnx") == ({**times, "item_vectors": hidden}, {**user, "hidden_out": hidden})
    assert signature("engines/depth-08.onnx") == ({**times, "hidden_in": hidden}, {**user, "hidden_out": hidden})
    assert signature("engines/depth-16.onnx") == ({**times, "hidden_in": hidden}, user)


def test_engines_hold_standard_operators_and_no_trace_of_where_they_were_made(engines: EngineSet) -> None:
    for data in engines.files.values():
        model = onnx.load_from_string(data)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        read = {value for node in model.graph.node for value in node.input}
        assert {each.name for each in model.graph.initializer} <= read
        assert b".py" not in data


def test_the_same_model_gives_the_same_bytes(bundle_path: Path, engines: EngineSet) -> None:
    written = {file: (bundle_path / file).read_bytes() for file in engines.files}
    assert written == engines.converted(with_optional_exit).files
