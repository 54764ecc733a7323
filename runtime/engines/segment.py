"""One engine file of a bundle, opened."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError, brief
from fathom.runtime.engines.session import Provider, open_session
from fathom.runtime.manifest import ModelInfo

#: The input that says whether an exit is computed; where it is left out, it is.
READ_EXIT = "read_exit"
_NO = np.array(False)


class Segment:
    """One engine file as a session; ``inputs`` and ``outputs`` are the names of what it reads and can give.

    ``name``: what an error calls it. The others: see ``open_session``.
    """

    def __init__(
        self,
        engine: bytes,
        name: object,
        threads: int,
        device: Provider = "cpu",
        *,
        captured: bool = False,
        recurring: bool = False,
        tensorrt: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._session = open_session(
            engine, name, threads, device, captured=captured, recurring=recurring, tensorrt=tensorrt
        )
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self._has_optional_exit = any(i.name == READ_EXIT for i in self._session.get_overridable_initializers())

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """These outputs; ``feeds`` may hold more than it reads."""
        # Plain arrays: OrtValue and IO binding were measured and gain nothing on the CPU.
        inputs = {name: feeds[name] for name in self.inputs}
        if self._has_optional_exit and "user_vector" not in outputs:
            inputs[READ_EXIT] = _NO
        try:
            results: list[NDArray[np.float32]] = self._session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's own classes have no common base but this one
            raise BundleError(f"{self._name}: onnxruntime cannot run this engine: {brief(error, 120)}") from error
        return results

    def check(self, model: ModelInfo, *, first: bool, last: bool) -> None:
        """Inputs and outputs are those that docs/bundle-format.md gives this place in a chain; else BundleError."""
        # First segments of bundles before schema 4 look the items' vectors up themselves.
        needed = {"item_vectors", "items"} if first else {"hidden_in"}
        known = {"items"} | needed | ({"timestamps"} if model.uses_timestamps else set())
        output = "user_vector" if last else "hidden_out"
        if needed.isdisjoint(self.inputs) or not known.issuperset(self.inputs) or output not in self.outputs:
            raise BundleError(
                f"{self._name}: not an engine for its place: it maps {brief(', '.join(self.inputs))} to"
                f" {brief(', '.join(self.outputs))} where {', '.join(sorted(known))} to {output} is needed;"
                " export the bundle again"
            )
        ids, vectors = ("tensor(int64)", 2, None), ("tensor(float)", 3, model.width)
        kinds = {"items": ids, "timestamps": ids, "user_vector": ("tensor(float)", 2, model.width)}
        for each in (*self._session.get_inputs(), *self._session.get_outputs()):
            kind, axes, width = kinds.get(each.name, vectors)
            # An axis whose length is not written into the file has a name, or none.
            *free, size = [length if isinstance(length, int) else None for length in each.shape] or [-1]
            if each.type != kind or len(free) != axes - 1 or any(free) or size not in (width, None):
                raise BundleError(
                    f"{self._name}: {brief(each.name)} is {each.type} {brief(each.shape)} where {kind} of {axes} axes"
                    f"{f' with width {width}' if width else ''} is needed; export the bundle again"
                )


def check_chains(chains: Iterable[Sequence[Segment]], model: ModelInfo) -> None:
    """Raise BundleError for the first segment that does not suit its place."""
    for chain in chains:
        for place, segment in enumerate(chain):
            segment.check(model, first=place == 0, last=place == len(chain) - 1)
