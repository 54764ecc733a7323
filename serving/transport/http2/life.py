"""How long a connection lives, and what it is asked meanwhile. Times are seconds of ``time.monotonic``."""

import enum

from fathom.serving.transport.http2.frames import ENHANCE_YOUR_CALM, ConnectionFault
from fathom.serving.transport.http2.limits import LEAVING_S, MOST_IDLE_FRAMES, MOST_PINGS, Limits


class Due(enum.Enum):
    """What has to be done for a connection."""

    NOTHING = enum.auto()
    PING = enum.auto()
    LEAVE = enum.auto()
    LEAVE_NOW = enum.auto()
    ABORT = enum.auto()


class Life:
    """``age_s``: how old the connection may become."""

    def __init__(self, limits: Limits, age_s: float, now_s: float) -> None:
        self._limits = limits
        self._born_s = now_s
        self._old_s = now_s + age_s
        #: When anything came, and when the last call ended.
        self.heard_s = self.free_s = now_s
        #: When the client was asked whether it is still there.
        self._asked_s: float | None = None
        self._pinged_s = 0.0
        self._pings = self._idle_frames = 0
        #: The client's settings have come.
        self.is_settled = False
        #: Since when it is to end, and whether no call that comes from now on is taken.
        self.leaving_s: float | None = None
        self.has_left = False

    def hears(self, now_s: float) -> None:
        """Something came."""
        self.heard_s = now_s
        self._asked_s = None

    def answers(self) -> None:
        """A call has ended, so the client is not idle."""
        self._pings = self._idle_frames = 0

    def is_pinged(self) -> None:
        """The client asks whether we are there; raises ConnectionFault if it does too often."""
        self._pings += self.heard_s - self._pinged_s < self._limits.least_ping_s
        self._pinged_s = self.heard_s
        if self._pings > MOST_PINGS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too_many_pings")

    def idles(self) -> None:
        """A frame came that asks for nothing; raises ConnectionFault if many do."""
        self._idle_frames += 1
        if self._idle_frames > MOST_IDLE_FRAMES:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "many frames that ask for nothing")

    def due(self, now_s: float, *, busy: bool) -> Due:
        """What has to be done now; ``busy``: there are calls."""
        limits = self._limits
        if self._asked_s is not None and now_s - self._asked_s > limits.ping_answer_s:
            return Due.ABORT
        if not self.is_settled and now_s - self._born_s > limits.handshake_s:
            return Due.ABORT
        if self.leaving_s is not None:
            if now_s - self.leaving_s > limits.grace_s:
                return Due.ABORT
            if not self.has_left and now_s - self.leaving_s > LEAVING_S:
                return Due.LEAVE_NOW
        elif now_s > self._old_s or (not busy and now_s - self.free_s > limits.idle_s):
            return Due.LEAVE
        if self._asked_s is None and now_s - self.heard_s > limits.ping_every_s:
            self._asked_s = now_s
            return Due.PING
        return Due.NOTHING
