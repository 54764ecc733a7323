"""Checks the second form of a chain against the first, on histories that grow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fathom.errors import DataError, ParityError
from fathom.exporter.engines.parity import SegmentRunner
from fathom.exporter.engines.segments import CONTEXT_FILE, extension_file, segment_specs
from fathom.runtime.engines.extension import Extender, Form, History
from fathom.runtime.item_vectors import ItemVectors
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel

MAX_ABS_ERROR = 1e-5
HISTORIES = 20
EXTENDED = 30


class _File:
    def __init__(self, data: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.inputs: Sequence[str] = [each.name for each in self._session.get_inputs()]
        self.outputs: Sequence[str] = [each.name for each in self._session.get_outputs()]

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(outputs, {name: feeds[name] for name in self.inputs})
        return found


def extension_error(
    model: ElasticModel,
    engines: Mapping[str, bytes],
    files: Mapping[str, bytes],
    vectors: ItemVectors,
    histories: Sequences,
) -> float:
    """The largest error of a user vector: the longest histories, the end of each item by item, at every depth.

    Raises ParityError beyond MAX_ABS_ERROR, DataError without histories.
    """
    if not len(histories):
        raise DataError("no history to check the engines with: no user has enough events for a case")
    config = model.config
    form = Form(config.span, config.heads, config.width, CONTEXT_FILE, {d: extension_file(d) for d in config.paths})
    extender = Extender(form, vectors, lambda path: _File(files[path]), model.depths)
    plain = SegmentRunner(engines, segment_specs(config.paths), vectors)
    worst = 0.0
    for row in np.argsort(-histories.lengths, kind="stable")[:HISTORIES].tolist():
        ids = histories[row][-config.max_history :].astype(np.int64) + 1
        times = histories.times(row)
        seconds = np.zeros_like(ids) if times is None else times[-config.max_history :].astype(np.int64)
        expected = plain.run_arrays(ids[None], seconds[None] if model.uses_timestamps else None)
        for depth in model.depths:
            begun = max(1, len(ids) - EXTENDED)
            users, kept = extender.resume([History(ids[:begun], seconds[:begun], None)], depth)
            for length in range(begun + 1, len(ids) + 1):
                users, kept = extender.resume([History(ids[:length], seconds[:length], kept[0])], depth)
            worst = max(worst, float(np.abs(users - expected[depth]).max()))
    if not worst <= MAX_ABS_ERROR:
        raise ParityError(f"going on from what is kept is off by {worst:.2g}, not {MAX_ABS_ERROR:g}; export again")
    return worst
