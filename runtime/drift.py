"""Measures some live requests, to see whether they are still like the training data."""

import logging
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.query import QueryHistory
from fathom.selector.drift import FeatureDrift
from fathom.selector.features import Features
from fathom.selector.monitor import Distinct

log = logging.getLogger("fathom.runtime")

Inspect = Callable[[NDArray[np.integer], NDArray[np.int64] | None], tuple[Features, float]]


class DriftWatch:
    """Measures a ``share`` of the histories that it is offered; drift is logged, and changes nothing else."""

    def __init__(self, drift: FeatureDrift, inspect: Inspect, share: float) -> None:
        self.drift = drift
        self._inspect = inspect
        self._share = share
        self._random = random.Random(0)
        self._distinct = Distinct()

    def offer(self, history: QueryHistory) -> None:
        """Perhaps measure a history; the same one counts once."""
        if self._random.random() >= self._share or not self._distinct.add(history.items.tobytes()):
            return
        try:
            found = self.drift.add(*self._inspect(history.items, history.timestamps))
        except Exception:
            log.exception("the features of a request could not be compared with the training data")
            return
        if found is not None:
            log.warning("%s", found)
