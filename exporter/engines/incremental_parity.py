"""Checks incremental inference against whole histories, on histories that grow."""

from collections.abc import Mapping

import numpy as np

from fathom.errors import DataError, ParityError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.segments import CONTEXT_FILE, extension_file, step_file
from fathom.runtime.engines.incremental import CachedHistory, IncrementalFiles, IncrementalRunner
from fathom.runtime.engines.segment import Segment
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel

MAX_ABS_ERROR = 1e-5
HISTORIES = 20
EXTENDED = 30


def incremental_error(
    model: ElasticModel, engines: EngineSet, files: Mapping[str, bytes], histories: Sequences
) -> float:
    """The largest error of a user vector: the longest histories, the end of each item by item, at every depth.

    ``files``: those of ``export_extension``. Raises ParityError beyond MAX_ABS_ERROR, DataError without histories.
    """
    if not len(histories):
        raise DataError("no history to check the engines with: no user has enough events for a case")
    config = model.config
    segments, steps = ({depth: named(depth) for depth in config.paths} for named in (extension_file, step_file))
    form = IncrementalFiles(config.span, config.heads, config.width, CONTEXT_FILE, segments, steps)

    def load(path: str, *, recurring: bool = False) -> Segment:
        return Segment(files[path], path, threads=1, recurring=recurring)

    runner = IncrementalRunner(form, engines.vectors, load, model.depths)
    worst = 0.0
    for row in np.argsort(-histories.lengths, kind="stable")[:HISTORIES].tolist():
        ids = histories[row][-config.max_history :].astype(np.int64) + 1
        times = histories.times(row)
        seconds = np.zeros_like(ids) if times is None else times[-config.max_history :].astype(np.int64)
        expected = engines.run(ids[None], seconds[None])
        for depth in model.depths:
            begun = max(1, len(ids) - EXTENDED)
            users, kept = runner.run([CachedHistory(ids[:begun], seconds[:begun], None)], [depth])
            for length in range(begun + 1, len(ids) + 1):
                users, kept = runner.run([CachedHistory(ids[:length], seconds[:length], kept[0])], [depth])
            worst = max(worst, float(np.abs(users - expected[depth]).max()))
    if not worst <= MAX_ABS_ERROR:
        raise ParityError(f"incremental inference is off by {worst:.2g}, more than {MAX_ABS_ERROR:g}; export again")
    return worst
