"""Learns how the time of a request moves the user vectors of a trained model."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.training.batches import Batch
from fathom.training.counting import tuning_cases
from fathom.training.dataset import Progress, Sequences
from fathom.training.metrics import Floats
from fathom.training.model import ElasticModel
from fathom.training.moves_fit import Moves, fit_moves
from fathom.training.presets import TrainSettings
from fathom.training.request_time import BUCKETS, UNKNOWN, RequestTime, gap_shares, gaps_of
from fathom.training.splits import Split


def fit_request_time(
    model: ElasticModel, settings: TrainSettings, cut: Split, *, progress: Progress = lambda _: None
) -> RequestTime | None:
    """What the time since the newest event changes, as ``fit_moves`` learns and weighs it.

    None without times, without validation cases, where that is off (``settings.request_time``), and where it does not
    help.
    """
    cases = tuning_cases(cut)
    if settings.request_time == "off" or cut.train.timestamps is None or not len(cases):
        return None
    found = fit_moves(model, settings, cut.train, cases, Gaps(), progress=progress)
    return None if found is None else RequestTime(found.changes, found.gain)


class Gaps:
    """What the seconds between the newest event and a request count of each bucket."""

    what, size = "the time of a request", BUCKETS

    def of_positions(
        self,
        train: Sequences,
        batch: Batch,
        rows: NDArray[np.int64],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """As ``Signal``: float32 (B, L, BUCKETS)."""
        return gap_shares(_gaps(train, batch, rows))

    def of_requests(self, histories: Sequences) -> NDArray[np.float32]:
        """As ``Signal``: float32 (n, BUCKETS)."""
        return gap_shares(gaps_of(histories))

    def counts(self, told: NDArray[np.float32]) -> Floats:
        """As ``Signal``."""
        return np.asarray(told.sum((0, 1)), np.float64)

    def change(self, told: Any, changes: Any) -> Any:
        """As ``Signal``."""
        return told @ changes


def moves_of(request_time: RequestTime) -> Moves:
    """What was learned, as what comes before something else is."""
    return Moves(Gaps(), request_time.changes, request_time.gain)


def _gaps(train: Sequences, batch: Batch, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seconds from every event of a batch's windows (B, 3) to the next one, int64 (B, L); UNKNOWN for padding."""
    assert train.timestamps is not None
    assert batch.timestamps is not None
    times = batch.timestamps.numpy()
    after = train.timestamps[train.offsets[rows[:, 0]] + rows[:, 2]]
    following = np.concatenate((times[:, 1:], after[:, None]), axis=1)
    known = (batch.items.numpy() > 0) & (times > 0) & (following > 0)
    return np.where(known, np.maximum(following - times, 0), UNKNOWN)
