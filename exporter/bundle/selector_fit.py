"""Fits the complexity of a bundle: what the shallowest depth gets wrong, learned from its engines' own answers."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fathom.exporter.bundle.teachers import teaching_cases
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.parity import top_items
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import SelectorTables, measure_all
from fathom.training.batches import history_batches
from fathom.training.counting import CountingExit, CountingTables, count
from fathom.training.dataset import Sequences
from fathom.training.model import ModelConfig
from fathom.training.splits import Split

#: Requests that are answered at all depths; more of them cost time and tell little more.
REQUESTS = 3_000
_TOKENS = 6_400
_ROWS_PER_RANKING = 64


def fit_complexity(
    engines: EngineSet,
    config: ModelConfig,
    tables: SelectorTables,
    counting: CountingExit,
    cut: Split,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> ComplexityModel:
    """Learn from teachers' histories (see ``teachers``), at the shallowest and the deepest depth.

    Where counting has a part in a depth's scores, it has counted no more than their training part.
    """
    longest = config.max_history
    cases, whole = teaching_cases(cut, longest, REQUESTS)
    recounted = count(cut.train, len(engines.vectors), counting.tables.settings)
    vectors, disagreement, done = np.asarray(engines.vectors), np.empty(len(cases)), 0
    for rows, items, times in history_batches(cases.histories, max_history=longest, tokens=_TOKENS):
        users = engines.run(items.numpy(), None if times is None else times.numpy())
        for start in range(0, len(rows), _ROWS_PER_RANKING):
            part = slice(start, start + _ROWS_PER_RANKING)
            histories = cases.histories.select(rows[part])
            shallow, deep = (
                _top_ten(users[depth][part] @ vectors.T, counting.weights.get(depth, 0.0), recounted, histories)
                for depth in (min(users), max(users))
            )
            disagreement[rows[part]] = 1 - (shallow[:, :, None] == deep[:, None, :]).any(2).mean(1)
        done += len(rows)
        progress(f"fitting the selector: {done:,} of {len(cases):,} requests")
    windows = (
        (cases.histories[row][-longest:], None if times is None else times[-longest:])
        for row, times in ((row, cases.histories.times(row)) for row in range(len(cases)))
    )
    return ComplexityModel.fit(measure_all(windows, tables), disagreement, cases.users, whole, config.temperature)


def _top_ten(
    cosines: NDArray[np.float32], weight: float, counting: CountingTables, histories: Sequences
) -> NDArray[np.int64]:
    """The best items (rows, 10) by cosines (rows, items) and the part of counting in them, without what was seen."""
    if weight:
        cosines = cosines + np.float32(weight) * counting.shares(histories).toarray()
    return top_items(cosines, histories)
