"""Learns how the context of a request moves the user vectors of a trained model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.training.batches import Batch
from fathom.training.context import Context, change_of
from fathom.training.counting import tuning_cases
from fathom.training.dataset import Progress, Sequences
from fathom.training.metrics import Floats
from fathom.training.model import ElasticModel
from fathom.training.moves_fit import fit_moves
from fathom.training.presets import TrainSettings
from fathom.training.request_time import RequestTime
from fathom.training.request_time_fit import moves_of
from fathom.training.splits import Split

#: Of what the training events tell, this share counts as missing: one feature must help where others are not known.
FORGOTTEN = 0.1


def fit_context(
    model: ElasticModel,
    settings: TrainSettings,
    cut: Split,
    request_time: RequestTime | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Context | None:
    """What the context of a request changes, as ``fit_moves`` learns and weighs it.

    ``request_time``: what its time has changed before. A value that few training events have changes nothing, as one
    that is not known. None without features of a context, without validation cases, where that is off
    (``settings.context``), and where it does not help.
    """
    cases, contexts = tuning_cases(cut), cut.train.contexts
    if settings.context == "off" or contexts is None or not any(contexts.values.values()) or not len(cases):
        return None
    before = None if request_time is None else moves_of(request_time)
    found = fit_moves(model, settings, cut.train, cases, _Features(contexts.values), before=before, progress=progress)
    if found is None:
        return None
    kept = np.asarray(found.changes.any(axis=(1, 2)), np.bool_)
    stays = iter(kept.tolist())
    values = {feature: tuple([value for value in known if next(stays)]) for feature, known in contexts.values.items()}
    return Context(values, found.changes[kept], found.gain)


class _Features:
    """The values of a request's features: rows of changes, see ``rows_of``."""

    what = "the context of a request"

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        sizes = [len(known) for known in values.values()]
        self.size = sum(sizes)
        self._before = np.cumsum([0, *sizes[:-1]])

    def of_positions(
        self, train: Sequences, batch: Batch, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """As ``Signal``: int64 (B, L, features), some of them forgotten."""
        assert train.contexts is not None
        longest = batch.items.shape[1]
        codes = np.zeros((len(rows), longest, len(self._before)), np.int32)
        for row, (user, start, stop) in enumerate(rows):
            after = train.offsets[user] + 1
            codes[row, longest - (stop - start) :] = train.contexts.codes[after + start : after + stop]
        codes[rng.random(codes.shape) < FORGOTTEN] = 0
        return self._rows(codes)

    def of_requests(self, histories: Sequences) -> NDArray[np.int64]:
        """As ``Signal``: int64 (n, features)."""
        assert histories.asked_contexts is not None
        return self._rows(histories.asked_contexts.codes)

    def counts(self, told: NDArray[np.int64]) -> Floats:
        """As ``Signal``."""
        return np.bincount(told.ravel(), minlength=self.size + 1)[1:].astype(np.float64)

    def change(self, told: Any, changes: Any) -> Any:
        """As ``Signal``."""
        return change_of(told, changes)

    def _rows(self, codes: NDArray[np.int32]) -> NDArray[np.int64]:
        """As ``rows_of``, of the very values that the codes are of: (..., features)."""
        return np.where(codes > 0, codes + self._before, 0)
