"""How samples lie in a batch: how many there are, and how some of them are taken out."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from fathom.errors import ConfigError, DataError
from fathom.importance.inputs import Inputs


class Collation(Protocol):
    """How a model's inputs hold several samples."""

    def samples(self, inputs: Inputs) -> int:
        """How many samples there are."""
        ...

    def part(self, inputs: Inputs, first: int, last: int) -> Inputs:
        """The samples from first to before last as a batch."""
        ...

    def part_of_labels(self, labels: Any, first: int, last: int) -> Any:
        """Their labels."""
        ...

    def node_of(self, inputs: Inputs) -> Tensor | None:
        """Of a graph, the sample of each node, int64 (nodes,); None elsewhere."""
        ...

    def mask(self, inputs: Inputs, positions: int) -> Tensor | None:
        """Which of so many positions are real, bool (samples, positions); None where nothing says so."""
        ...


#: Arguments that mark what is real, and those that mark padding instead.
REAL, PADDING = (
    ("decoder_attention_mask", "attention_mask"),
    ("src_key_padding_mask", "key_padding_mask", "padding_mask"),
)


class Dense:
    """Everything whose tensors have the samples as their first axis: text, pictures, sound, tables."""

    def samples(self, inputs: Inputs) -> int:
        """The length of the first axis of the first tensor."""
        first = next(_tensors((*inputs.args, *inputs.kwargs.values())), None)
        if first is None:
            raise DataError("a batch holds no tensor; its samples cannot be counted")
        return first.shape[0]

    def part(self, inputs: Inputs, first: int, last: int) -> Inputs:
        """Those rows of every tensor that has as many rows as there are samples, in dicts and lists too."""
        count = self.samples(inputs)

        def rows(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[first:last] if value.dim() and value.shape[0] == count else value
            if isinstance(value, Mapping):
                return {name: rows(each) for name, each in value.items()}
            return type(value)(map(rows, value)) if isinstance(value, tuple | list) else value

        return Inputs(tuple(map(rows, inputs.args)), {name: rows(value) for name, value in inputs.kwargs.items()})

    def part_of_labels(self, labels: Any, first: int, last: int) -> Any:
        """Those rows, or parts of a list."""
        if isinstance(labels, Mapping):
            return {name: value[first:last] for name, value in labels.items()}
        return labels[first:last]

    def node_of(self, inputs: Inputs) -> None:
        """There are no nodes."""

    def mask(self, inputs: Inputs, positions: int) -> Tensor | None:
        """The attention mask of the right length, of the decoder before that of the encoder, or what is no padding."""
        for name in (*REAL, *PADDING):
            value = inputs.kwargs.get(name)
            if not isinstance(value, Tensor) or value.is_floating_point():
                continue
            if value.dim() == 2 and value.shape[1] == positions:
                return value == 0 if name in PADDING else value != 0
        return None


class Graphs:
    """Several graphs as one without edges between them: x (nodes, features), edge_index int64 (2, edges), batch int64
    (nodes,), the graph of each node, ascending; by these names.
    """

    def samples(self, inputs: Inputs) -> int:
        """How many graphs there are."""
        return int(self.node_of(inputs).max()) + 1

    def part(self, inputs: Inputs, first: int, last: int) -> Inputs:
        """Some graphs, their nodes numbered anew; what has a row for each node or edge is cut alike."""
        node_of, edges = self.node_of(inputs), inputs.kwargs["edge_index"]
        nodes = (node_of >= first) & (node_of < last)
        inside = nodes[edges[0]]
        cut = {}
        for name, value in inputs.kwargs.items():
            if name == "edge_index":
                cut[name] = edges[:, inside] - int(nodes.nonzero()[0])
            elif name == "batch":
                cut[name] = node_of[nodes] - first
            elif isinstance(value, Tensor) and value.dim() and value.shape[0] == len(node_of):
                cut[name] = value[nodes]
            elif isinstance(value, Tensor) and value.dim() and value.shape[0] == edges.shape[1]:
                cut[name] = value[inside]
            else:
                cut[name] = value
        return Inputs(inputs.args, cut)

    def part_of_labels(self, labels: Any, first: int, last: int) -> Any:
        """Those rows."""
        return labels[first:last]

    def node_of(self, inputs: Inputs) -> Tensor:
        """``batch``."""
        found = inputs.kwargs.get("batch")
        if not isinstance(found, Tensor):
            raise ConfigError("a batch of graphs needs batch, the graph of each node, by name")
        return found

    def mask(self, inputs: Inputs, positions: int) -> None:
        """All nodes are real."""


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, those without an axis left out."""
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)
