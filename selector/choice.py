"""What is chosen for a request: one Choice."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from fathom.selector.features import Features
from fathom.selector.monitor import Monitor
from fathom.selector.routing import Cascade


class DepthReason(StrEnum):
    """Why a depth was chosen.

    Asked for; a simple or a complex request; as certified; always the deepest; the certificate no longer fits; or all
    that the deadline allows.
    """

    FIXED = "fixed"
    SIMPLE = "simple"
    COMPLEX = "complex"
    DEADLINE = "deadline"
    CERTIFIED = "certified"
    DEEPEST = "deepest"
    FALLBACK = "fallback"


class EarlyExit(NamedTuple):
    """What may answer a request at an exit before its depth: the cascade decides at every exit, from the features."""

    cascade: Cascade
    features: Features


class Comparison(NamedTuple):
    """What the answer may be compared with later: that of the deepest depth; ``monitor`` is told how far they agree."""

    deepest: int
    monitor: Monitor


@dataclass(frozen=True, slots=True)
class Choice:
    """The depth of one request; ``why`` is a sentence for a person.

    ``complexity`` is 0 (simple) to 1, and None where it had no say. ``early_exit``: None where the request runs to its
    depth. ``comparison``: None where nothing is to be compared. ``probe``: the request seems too late, and runs to
    correct the estimates that say so.
    """

    depth: int
    reason: DepthReason
    why: str
    complexity: float | None = None
    early_exit: EarlyExit | None = None
    comparison: Comparison | None = None
    probe: bool = False
