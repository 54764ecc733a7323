"""The pieces that engines are put together from, each traced by ``torch.onnx.export`` once in a process.

Tracing costs seconds per layer, and all layers of all models of one shape compute one function with different weights.
So a layer is traced once, without its weights, and an engine is laid out from copies of it that are given theirs.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxscript import opset18
from torch import Tensor, nn

from fathom.exporter.engines.quiet import one_registry, quiet_exporter
from fathom.training.blocks import Block, Context
from fathom.training.model import ElasticModel

OPSET = 18

#: The dynamic axes of everything that flows between pieces.
_AXES = {
    "items": {0: "batch", 1: "history"},
    "timestamps": {0: "batch", 1: "history"},
    "hidden": {0: "batch", 1: "history"},
    "item_vectors": {0: "batch", 1: "history"},
    "newest": {0: "batch"},
    "new_items": {0: "batch", 1: "new"},
    "past": {0: "batch", 2: "seen"},
    "mask": {0: "batch", 3: "history"},
    "positions": {},
    "time": {0: "batch", 2: "history", 3: "history"},
}
_WHOLE_NUMBERS = {"items", "timestamps", "new_items"}


@dataclass(frozen=True)
class Piece:
    """A traced module: a graph whose inputs and outputs have fixed names; of its weights it holds the names alone."""

    graph: onnx.GraphProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


#: Everything traced so far: tracing depends on a model's shape, never on its weights.
_traced: dict[object, Piece] = {}


class Pieces:
    """The pieces of one model in float32, traced when first asked for; whatever is built alike shares one.

    ``of_new``: layers that compute new positions alone read these positions alone, (new, history); otherwise all read
    those of the longest history.
    """

    def __init__(self, model: ElasticModel, *, of_new: bool = False) -> None:
        self.model = model
        self.of_new = of_new
        self._shape = model.config.model_dump_json(exclude={"items", "layers", "paths", "strategy"})

    @property
    def context_names(self) -> tuple[str, ...]:
        """What every layer reads besides the hidden state and the positions of the longest history."""
        return ("mask", *(("time",) if self.model.uses_timestamps else ()))

    @property
    def request_names(self) -> tuple[str, ...]:
        """What a request brings."""
        return ("items", *(("timestamps",) if self.model.uses_timestamps else ()))

    def context(self) -> Piece:
        """items [, timestamps] -> mask [, time]."""
        return self._piece("context", _ContextPiece(self.model), self.request_names, self.context_names)

    def embed(self) -> Piece:
        """item_vectors -> hidden."""
        return self._piece("embed", _EmbedPiece(self.model.config.width), ("item_vectors",), ("hidden_next",))

    def layer(self, index: int, *, last_only: bool) -> Piece:
        """hidden, positions and the context -> hidden_next."""
        block = self.model.block(index)
        names = ("hidden", "positions", *self.context_names)
        return self._piece((last_only, *_build(block)), _LayerPiece(block, last_only), names, ("hidden_next",))

    def extension_context(self) -> Piece:
        """items [, timestamps], new_items -> mask [, time], where only new items ask."""
        names = (*self.request_names, "new_items")
        return self._piece("context", _ContextPiece(self.model), names, self.context_names, incremental=True)

    def extension_layer(self, index: int, *, last_only: bool) -> Piece:
        """As ``layer``, with past -> hidden_next and made, what the layer must keep."""
        block = self.model.block(index)
        names = ("hidden", "past", "positions", *self.context_names)
        module = _ExtensionLayerPiece(block, last_only, of_new=self.of_new)
        key = (last_only, self.of_new, *_build(block))
        return self._piece(key, module, names, ("hidden_next", "made"), incremental=True)

    def exit(self, depth: int) -> Piece:
        """newest (batch, 1, width) -> user_vector (batch, width)."""
        exit_ = self.model.exits[str(depth)]
        return self._piece(_build(exit_), _ExitPiece(exit_), ("newest",), ("user_vector",))

    def _piece(
        self,
        key: object,
        module: nn.Module,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        incremental: bool = False,
    ) -> Piece:
        """``incremental``: only new positions are computed."""
        key = (self._shape, incremental, key)
        if key not in _traced:
            examples = {name: self._example(name, 8 if incremental else 3) for name in inputs}
            # That known = seen + new is left to the exporter to find.
            axes = _dynamic_axes(inputs) if incremental else _plain_axes(inputs)
            if self.of_new and "past" in inputs:
                axes["positions"] = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
            _traced[key] = _trace(module, examples, outputs, axes)
        return _traced[key]

    def _example(self, name: str, known: int) -> Tensor:
        # Batch 2 and 3 new positions: torch.export takes sizes 0 and 1 for constants.
        width, heads = self.model.config.width, self.model.config.heads
        shapes = {
            "items": (2, known),
            "timestamps": (2, known),
            "new_items": (2, 3),
            "hidden": (2, 3, width),
            "item_vectors": (2, 3, width),
            "newest": (2, 1, width),
            "past": (2, 2 * heads, 5, width // heads),
            "mask": (2, 1, 1, known),
            "time": (2, heads, 3, known),
        }
        if name == "positions" and self.of_new:
            return torch.zeros((3, known), dtype=torch.int64)
        if name == "positions":
            longest = self.model.config.max_history
            return torch.zeros((), dtype=torch.int64).expand(longest, longest)
        return torch.zeros(shapes[name], dtype=torch.int64) if name in _WHOLE_NUMBERS else torch.ones(shapes[name])


def context_weights(model: ElasticModel) -> dict[str, NDArray[np.float32]]:
    """The weights of the context under the names that its piece uses."""
    return _weights(_ContextPiece(model))


def layer_weights(model: ElasticModel, index: int) -> dict[str, NDArray[np.float32]]:
    """The weights of one layer under the names that its piece uses."""
    return _weights(_LayerPiece(model.block(index), last_only=False))


def exit_weights(model: ElasticModel, depth: int) -> dict[str, NDArray[np.float32]]:
    """The weights of one exit under the names that its piece uses."""
    return _weights(_ExitPiece(model.exits[str(depth)]))


class _ContextPiece(nn.Module):
    def __init__(self, model: ElasticModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, items: Tensor, timestamps: Tensor | None = None, new_items: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        context = self.model.context(items, timestamps, None if new_items is None else new_items.shape[1])
        return (context.mask,) if context.time is None else (context.mask, context.time)


class _EmbedPiece(nn.Module):
    """What ``model.embed`` makes of the items' vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = width**0.5

    def forward(self, item_vectors: Tensor) -> Tensor:
        hidden: Tensor = item_vectors * self.size
        return hidden


class _BlockPiece(nn.Module):
    def __init__(self, block: Block, last_only: bool) -> None:
        super().__init__()
        self.block = block
        self.last_only = last_only


class _LayerPiece(_BlockPiece):
    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor, time: Tensor | None = None) -> Tensor:
        out: Tensor = self.block(hidden, Context(mask, positions, time), self.last_only)
        return out


class _ExtensionLayerPiece(_BlockPiece):
    def __init__(self, block: Block, last_only: bool, *, of_new: bool) -> None:
        super().__init__(block, last_only)
        self._of_new = of_new

    def forward(
        self, hidden: Tensor, past: Tensor, positions: Tensor, mask: Tensor, time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.block.extend(hidden, past, Context(mask, positions, time, self._of_new), self.last_only)


class _ExitPiece(nn.Module):
    def __init__(self, exit_: nn.Module) -> None:
        super().__init__()
        self.exit = exit_

    def forward(self, newest: Tensor) -> Tensor:
        out: Tensor = self.exit(newest[:, 0])
        return out


def _build(module: nn.Module) -> tuple[object, ...]:
    """Equal for modules that compute the same function of their input and their weights."""
    shapes = tuple((name, tuple(value.shape)) for name, value in module.state_dict().items())
    return (type(module), str(module), shapes)


def _weights(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


def _index(values: Any, indices: Sequence[Any]) -> Any:
    """``values[:, index]`` as one Gather; torch's own translation makes five operators, several times slower."""
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    assert len(used) == 1, "an engine may index one axis at a time"
    axis, index = used[0]
    return opset18.Gather(values, index, axis=axis)


def _plain_axes(names: Iterable[str]) -> dict[str, dict[int, Any]]:
    axes = {name: torch.export.Dim(name, min=1) for name in ("batch", "history")}
    return {name: {i: axes[axis] for i, axis in _AXES[name].items()} for name in names}


def _dynamic_axes(names: Iterable[str]) -> dict[str, dict[int, Any]]:
    return {name: dict.fromkeys(_AXES[name], torch.export.Dim.DYNAMIC) for name in names}


def _trace(
    module: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, Mapping[int, Any]]
) -> Piece:
    with quiet_exporter(), one_registry(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(example),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=dict(axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.index.Tensor: _index},
            optimize=False,  # folding would turn weights into constants that no longer have their names
        )
    assert program is not None
    proto = program.model_proto
    assert not proto.functions, "an engine must hold plain operators only"
    for weight in proto.graph.initializer:
        weight.ClearField("raw_data")
    return Piece(proto.graph, tuple(example), tuple(outputs))


def _size(name: str, value: str, axis: int) -> onnx.NodeProto:
    """How long a value is along an axis, under this name."""
    return helper.make_node("Shape", [value], [name], start=axis, end=axis + 1)


class Assembly:
    """An ONNX graph that grows piece by piece; values are named after the prefix of the piece that made them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.position_nodes: list[onnx.NodeProto] = []
        self.position_constants: list[onnx.TensorProto] = []
        self._shaped_like: dict[str, str] = {}

    def add(
        self,
        prefix: str,
        piece: Piece,
        inputs: Mapping[str, str],
        weights: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, str]:
        """Lay a copy of a piece: its input -> the value to read; returns its output -> the value it makes."""

        def named(value: str) -> str:
            return inputs.get(value) or (f"{prefix}.{value}" if value else "")

        for weight in piece.graph.initializer:
            self.constants.append(numpy_helper.from_array(weights[weight.name], named(weight.name)))
        for node in piece.graph.node:
            made = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=f"{prefix}.{node.name}")
            made.attribute.extend(node.attribute)
            made.input.extend(named(value) for value in node.input)
            if node.op_type == "Shape":
                made.input[0] = self._shaped_like.get(made.input[0], made.input[0])
            made.output.extend(named(value) for value in node.output)
            self.nodes.append(made)
        return {name: named(name) for name in piece.outputs}

    def positions(
        self,
        of_distance: NDArray[np.int64],
        sized_like: tuple[str, int] | None,
        newest_like: tuple[str, int] | None = None,
    ) -> str:
        """The name of the positions of the longest history, (M, M); ``of_distance`` (2 M - 1,) begins with 1 - M.

        Made by operators on small constants, so that an engine works them out once, when it is loaded: they are kept
        apart, in ``position_nodes`` and ``position_constants``. ``sized_like``: as many as this value has along this
        axis, worked out for every request: where the longest history is very long. ``newest_like``: and of these the
        rows of the newest alone, as many as this value has along this axis.
        """
        steps = np.arange(len(of_distance) // 2 + 1, dtype=np.int64)
        named = {"of_distance": of_distance, "rows": steps[:, None] + steps[-1], "columns": steps[None]}
        for name, value in named.items():
            self.position_constants.append(numpy_helper.from_array(value, f"positions.{name}"))
        rows, columns = "positions.rows", "positions.columns"
        if sized_like is not None:
            for end, number in (("start", 0), ("first", 0), ("second", 1)):
                constant = numpy_helper.from_array(np.array([number], np.int64), f"positions.{end}")
                self.position_constants.append(constant)
            self.position_nodes.append(_size("positions.length", *sized_like))
            start = "positions.start"
            if newest_like is not None:
                newest = _size("positions.newest", *newest_like)
                seen = helper.make_node("Sub", ["positions.length", "positions.newest"], ["positions.seen"])
                self.position_nodes += [newest, seen]
                start = "positions.seen"
            self.position_nodes += [
                helper.make_node("Slice", [rows, start, "positions.length", "positions.first"], [f"{rows}.cut"]),
                helper.make_node(
                    "Slice", [columns, "positions.start", "positions.length", "positions.second"], [f"{columns}.cut"]
                ),
            ]
            rows, columns = f"{rows}.cut", f"{columns}.cut"
        self.position_nodes += [
            helper.make_node("Sub", [rows, columns], ["positions.distance"]),
            helper.make_node("Gather", ["positions.of_distance", "positions.distance"], ["positions"]),
        ]
        return "positions"

    def same_shape(self, value: str, other: str) -> None:
        """Whoever asks for the shape of a value is given that of an earlier one, so that all ask for the same."""
        self._shaped_like[value] = self._shaped_like.get(other, other)

    def split(self, value: str, parts: int, *, axis: int) -> list[str]:
        """The names of equal parts of a value along an axis."""
        names = [f"{value}.{part}" for part in range(parts)]
        for name in names[1:]:
            self.same_shape(name, names[0])
        self.nodes.append(helper.make_node("Split", [value], names, f"{value}.split", axis=axis, num_outputs=parts))
        return names

    def concat(self, name: str, values: Sequence[str], *, axis: int) -> str:
        """The name of values put one after the other along an axis."""
        joined = f"{name}.joined"
        self.nodes.append(helper.make_node("Concat", list(values), [joined], joined, axis=axis))
        return joined

    def newest(self, value: str, most: int, *, axis: int) -> str:
        """The name of the last ``most`` entries of a value along an axis, or of all that there are."""
        name = f"{value}.newest"
        ends = {"start": -most or sys.maxsize, "end": sys.maxsize, "axis": axis}
        for end, number in ends.items():
            self.constants.append(numpy_helper.from_array(np.array([number], np.int64), f"{name}.{end}"))
        self.nodes.append(helper.make_node("Slice", [value, *(f"{name}.{end}" for end in ends)], [name], name))
        return name
