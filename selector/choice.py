"""What a depth is chosen for, and what is chosen."""

from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.selector.features import Features
from fathom.selector.monitor import Monitor

PolicyName = Literal["auto", "certified", "rule", "deepest"]


class DepthReason(StrEnum):
    """Why a depth was chosen.

    Asked for; a simple or a complex request; as certified; always the deepest; the certificate no longer fits; all that
    the deadline, or a full queue, allows; or nothing is known to go by but what is popular.
    """

    FIXED = "fixed"
    SIMPLE = "simple"
    COMPLEX = "complex"
    DEADLINE = "deadline"
    CERTIFIED = "certified"
    DEEPEST = "deepest"
    FALLBACK = "fallback"
    POPULAR = "popular"


class AgreementCheck(NamedTuple):
    """Where a routed request may be run again, and who is told how far both answers agree."""

    deepest: int
    monitor: Monitor


class Choice(NamedTuple):
    """The depth of one request; ``why`` is a sentence for a person.

    ``complexity`` is 0 (simple) to 1, and None where it had no say.
    ``agreement_check``: with what it may be compared later. ``probe``: no estimate says that the engine will be in
    time, but a run may correct the estimates; at depth 0, a run beside the answer.
    """

    depth: int
    reason: DepthReason
    why: str
    complexity: float | None = None
    agreement_check: AgreementCheck | None = None
    probe: bool = False


class Estimates(Protocol):
    """What a request may expect, now; all in seconds. Depth 0 has no queue."""

    @property
    def time_s(self) -> float:
        """From now to the deadline; infinite without one."""

    @property
    def behind(self) -> bool:
        """Whether more requests arrive than can be answered, so that others are refused for what this one takes."""

    def queue_s(self, depth: int) -> float:
        """Median time in the queue, for this depth."""

    @property
    def care(self) -> float:
        """How sure it must be that an answer will be in time, for it to be tried, 0 (as likely as not) to 1 (p99)."""

    def cost_s(self, depth: int, *, care: float = 1.0) -> float:
        """What 99 of 100 such answers take once they begin, p99; ``care``: 0 for half of them, or anything between."""

    def may_probe(self, depth: int) -> bool:
        """Whether it should run at this depth although the estimates say that the time is too short."""


class Inspect(Protocol):
    """Measures a request."""

    def __call__(self, *, brief: bool = False) -> tuple[Features, float]:
        """Its features and complexity (0 to 1); ``brief``: features that this does not need may be unknown."""


class DepthRequest(NamedTuple):
    """What there is to know of one request.

    ``items``: int64 (length,), the item indices that the engine will see, oldest first; none where nothing is known,
    which only depth 0 can answer. ``inspect``: called only where their features or complexity have a say. ``fixed``:
    the depth that was asked for, which overrides every policy. ``estimates``: None where nothing waits for anything.
    ``policy``: in place of the chooser's own.
    """

    profile: DeviceProfile
    items: NDArray[np.int64]
    inspect: Inspect
    fixed: int | None = None
    estimates: Estimates | None = None
    policy: PolicyName | None = None
