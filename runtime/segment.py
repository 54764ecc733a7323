"""One engine file of a bundle, opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError
from fathom.runtime.session import Device, open_session

#: The input that says whether an exit is computed; where it is left out, it is.
READ_EXIT = "read_exit"
_NO = np.array(False)


class Segment:
    """One engine file as a session; ``inputs`` and ``outputs`` are the names of what it reads and can give."""

    def __init__(self, path: Path, threads: int, device: Device = "cpu", *, captured: bool = False) -> None:
        self._path = path
        self._session = open_session(path, threads, device, captured=captured)
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self._has_optional_exit = any(i.name == READ_EXIT for i in self._session.get_overridable_initializers())

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """These outputs; ``feeds`` may hold more than it reads."""
        # Plain arrays: OrtValue and IO binding were measured and gain nothing on the CPU.
        inputs = {name: feeds[name] for name in self.inputs}
        if self._has_optional_exit and "user_vector" not in outputs:
            inputs[READ_EXIT] = _NO
        results: list[NDArray[np.float32]] = self._session.run(outputs, inputs)
        return results

    def check(self, *, first: bool, last: bool, timestamps: bool) -> None:
        """Inputs and outputs are those that docs/bundle-format.md gives this place in a chain."""
        # First segments of bundles before schema 4 look the items' vectors up themselves.
        needed = {"item_vectors", "items"} if first else {"hidden_in"}
        known = {"items"} | needed | ({"timestamps"} if timestamps else set())
        output = "user_vector" if last else "hidden_out"
        if needed.isdisjoint(self.inputs) or not known.issuperset(self.inputs) or output not in self.outputs:
            raise BundleError(
                f"{self._path}: not an engine for its place: it maps {', '.join(self.inputs)} to"
                f" {', '.join(self.outputs)} where {', '.join(sorted(known))} to {output} is needed;"
                " export the bundle again"
            )
