"""The engine files of one model: which layers each holds, what is in it, and how all depths are run with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.engines.items import item_vectors
from fathom.exporter.planning.plan import is_chain
from fathom.runtime.engines.segment import Segment
from fathom.runtime.item_vectors import ItemVectors

if TYPE_CHECKING:
    from fathom.training.model import ElasticModel

Values = Mapping[str, NDArray[Any]]
"""Inputs or outputs of an engine by name."""


@dataclass(frozen=True)
class SegmentSpec:
    """One engine file: ``full_layers`` on all positions, then ``last_layer`` on the last position and the exit.

    ``first``: reads the request only; otherwise also the hidden state of the segment before. ``feeds_next``: also
    returns the hidden state before ``last_layer``, where the next segment goes on.
    """

    depth: int
    full_layers: tuple[int, ...]
    last_layer: int
    first: bool
    feeds_next: bool

    @property
    def file(self) -> str:
        """Path inside the bundle."""
        return f"engines/depth-{self.depth:02d}.onnx"


def segment_specs(paths: Mapping[int, Sequence[int]]) -> tuple[SegmentSpec, ...]:
    """The engine files that these paths need, shallowest first."""
    depths = sorted(paths)
    if not is_chain(paths):
        return tuple(SegmentSpec(d, tuple(paths[d][:-1]), paths[d][-1], True, False) for d in depths)
    first = depths[0]
    specs = [SegmentSpec(first, tuple(paths[first][:-1]), paths[first][-1], True, len(depths) > 1)]
    for shallow, deep in pairwise(depths):
        path = paths[deep]
        specs.append(SegmentSpec(deep, tuple(path[shallow - 1 : -1]), path[-1], False, deep != depths[-1]))
    return tuple(specs)


@dataclass(frozen=True)
class EngineSet:
    """All engines of a model; a session is opened for each when they are run first.

    specs: shallowest first. files: path inside the bundle -> ONNX. vectors: of the items, as the engines read them.
    """

    specs: tuple[SegmentSpec, ...]
    files: Mapping[str, bytes]
    vectors: ItemVectors

    @classmethod
    def of(cls, model: "ElasticModel", files: Mapping[str, bytes]) -> "EngineSet":
        """The engine files of a model, with its own item vectors."""
        return cls(segment_specs(model.config.paths), files, item_vectors(model))

    def segments(self, depth: int) -> tuple[str, ...]:
        """The files that a depth runs, one after the other."""
        last = next(spec for spec in self.specs if spec.depth == depth)
        return tuple(spec.file for spec in self.specs if spec is last or (spec.depth < depth and not last.first))

    def converted(self, convert: Callable[[bytes], bytes]) -> "EngineSet":
        """The same engines, each file converted."""
        return replace(self, files={name: convert(data) for name, data in self.files.items()})

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None) -> dict[int, NDArray[np.float32]]:
        """Depth -> user vectors (B, width).

        items: input ids (B, L), padded on the left with 0. timestamps: seconds (B, L), None where they are unknown.
        """
        return {spec.depth: outputs["user_vector"] for spec, _, outputs in self.steps(items, timestamps)}

    def steps(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None
    ) -> Iterator[tuple[SegmentSpec, Values, Values]]:
        """As ``run``, segment by segment: what each reads, and what it gives, as ``user_vector`` (B, width)."""
        feeds: dict[str, NDArray[Any]] = {"items": items, "item_vectors": self.vectors.padded(items)}
        feeds["timestamps"] = np.zeros_like(items) if timestamps is None else timestamps
        for spec in self.specs:
            segment = self._opened[spec.file]
            names = list(segment.outputs)
            outputs = dict(zip(names, segment.run(names, feeds), strict=True))
            yield spec, {name: feeds[name] for name in segment.inputs}, outputs
            if spec.feeds_next:
                feeds["hidden_in"] = outputs["hidden_out"]

    @cached_property
    def _opened(self) -> dict[str, Segment]:
        return {name: Segment(data, name, threads=1) for name, data in self.files.items()}
