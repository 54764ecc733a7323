"""What goes into a pipeline and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.runtime.retriever import Indices, Scores
from fathom.runtime.reuse import Owner, Reused
from fathom.selector.policy import Decision


@dataclass(frozen=True, slots=True)
class Query:
    """One request in the pipeline's terms.

    ``items``: known item indices, oldest first, at least one, of any length. ``timestamps``: seconds, one per item, or
    None. ``k``: at least 1. ``depth``: run exactly this one. ``deadline_s``: on the clock of ``time.monotonic``.
    ``exclude``, ``allow``: item indices (``allow`` None = all). ``categories``: of at least one of them, when any.
    ``include_seen``: items of the history may be returned too. ``client``: whose it is; clients are served in turn.
    ``checked``: all indices are int64 arrays and known to be in the catalogue. ``owner``: whose history it is, where
    that is known.
    """

    items: Sequence[int] | NDArray[np.integer]
    k: int
    profile: DeviceProfile
    timestamps: Sequence[int] | NDArray[np.integer] | None = None
    depth: int | None = None
    deadline_s: float | None = None
    exclude: Sequence[int] | NDArray[np.integer] = ()
    allow: Sequence[int] | NDArray[np.integer] | None = None
    categories: frozenset[str] = frozenset()
    include_seen: bool = False
    client: str = ""
    checked: bool = False
    owner: Owner | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether other items may be returned than every one that the user has not had."""
        return bool(len(self.exclude) or self.allow is not None or self.categories or self.include_seen)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of each stage; ``engine_us`` and ``retrieval_us`` are those of the whole batch."""

    select_us: int
    queue_us: int
    engine_us: int
    retrieval_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class Answer:
    """``indices`` int64 and ``scores`` float32 (cosines), best first; fewer than k when the filter leaves fewer.

    ``reused``: what of the request was known already.
    """

    indices: Indices
    scores: Scores
    decision: Decision
    history_used: int
    timing: Timing
    reused: Reused = "nothing"
