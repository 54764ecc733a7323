"""How many calls the event loop begins: who is behind must not spend its time on calls that it cannot answer.

What is counted is whether calls get an answer; how long they have waited to be read nobody can tell. So the loop must
not begin more than it can do at once, or the rest waits where it is not seen, and all answers are late together.
"""

import time
from collections.abc import Callable

from fathom.serving.transport.contract import STALE_S

#: Calls that have arrived together may keep the event loop for TURN_S; those that can wait are begun in later turns.
TURN_S = 0.002
#: For how long it is counted what becomes of calls, before it is decided how many are begun; less where turns are long.
SPAN_S = 0.1
#: So many calls are never too many.
FEW = 16
#: The server falls behind where more than WASTE times as many calls are begun as are answered, and FEW more, while the
#: event loop takes more than BUSY of a core (often the engine has the other half); or as soon as turns that are too
#: long, two at least, have taken LONG of a span: one alone may be a pause of the whole process.
WASTE, BUSY, LONG = 1.25, 0.4, 0.5
#: How many calls are begun for each that was answered in the span before: more where nearly all were (GOOD), to find
#: out whether there is room for more.
SHARE, GROWTH, GOOD = 1.25, 4.0, 1.1
#: So many more, per span.
MORE = 4
#: A server that is behind tries now and then whether it can bear the load: the load that it fell behind at is thought
#: to be bearable RECOVERY times as much later with every span, but not where HOPELESS times more is offered than
#: answered, nor where the loop has no time left (FULL); and it is at least LEAST of what is answered now, cheaply.
RECOVERY, HOPELESS, FULL, LEAST = 1.02, 2.0, 0.8, 0.25
#: Weight of the newest turn in the estimate of what a call takes.
STEP = 0.2


class Intake:
    """Used from one event loop. ``clock``: seconds, as ``time.monotonic``; ``cpu``: as ``time.thread_time``."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._behind = False
        self._each_s = 0.0
        #: When the span began, its turns that were too long (and one of a long span before), and what became of calls.
        self._since_s = self._since_cpu_s = self._long_s = 0.0
        self._long_turns = 0
        self._begun = self._refused = self._answered = 0
        #: Calls per second that can be borne without refusing any, that may be begun, and how many may be begun now.
        self._bearable = self._per_s = self._room = 0.0
        #: Calls per second that were answered in the span before.
        self._before_per_s = 0.0
        self._noted_s = 0.0

    @property
    def behind(self) -> bool:
        """Whether more calls arrive than can be answered.

        Then some are refused before they are decoded, and those that are begun should cost as little as they may. It is
        over when none has come for STALE_S: nobody else would tell, and other methods ask this too.
        """
        return self._behind and self._clock() - self._noted_s < STALE_S

    def answered(self) -> None:
        """A call has ended with what it is due: an answer, or what is wrong with it."""
        self._answered += 1

    def note(self, began_s: float, begun: int, refused: int) -> int | None:
        """A turn that began then has ended; returns how many calls there is room for until the next, None: any number.

        ``refused``: how many were not begun, for lack of time.
        """
        now_s = self._clock()
        took_s = now_s - began_s
        if begun:
            self._each_s += STEP * (took_s / begun - self._each_s)
        if began_s - self._since_s >= SPAN_S:
            self._long_s, self._long_turns = 0.0, 0  # it was calm for a while
        if took_s > TURN_S and begun > FEW:
            self._long_s += took_s
            self._long_turns += 1
        self._begun += begun
        self._refused += refused
        span_s = now_s - self._since_s
        long = self._long_s > LONG * max(span_s, SPAN_S)
        flooded = long and self._long_turns > 1
        # Who has answered hardly any does not know yet how many it can.
        if span_s >= SPAN_S or (flooded and self._answered > FEW and not self._behind):
            self._judge(now_s, long=long, flooded=flooded)
        if not self._behind:
            return None
        in_a_turn = TURN_S / max(self._each_s, 1e-6)
        room = self._room + (now_s - self._noted_s) * self._per_s - begun
        # What was begun while any number was, or although there was no room, is not made up for by standing still.
        self._room = max(-in_a_turn, min(in_a_turn, room))
        self._noted_s = now_s
        return max(0, int(self._room))

    def _judge(self, now_s: float, *, long: bool, flooded: bool) -> None:
        """A span is over: is the server behind, and if so, how many calls may be begun?

        ``long``: turns that were too long took too much of it. ``flooded``: several, so it may have ended early.
        """
        span_s, cpu_s, answered = now_s - self._since_s, self._cpu(), self._answered
        per_s, cpu = answered / span_s, (cpu_s - self._since_cpu_s) / span_s
        rate = per_s
        troubled = cpu > BUSY and self._begun > WASTE * answered + FEW
        if self._behind:
            grown = min(RECOVERY * self._bearable, HOPELESS * per_s)
            self._bearable = max(self._bearable, grown, LEAST * per_s)
            bears = (self._begun + self._refused) / span_s <= self._bearable and cpu < FULL
            self._behind = not bears and (troubled or cpu > BUSY or self._refused > 0)
        elif troubled or flooded:
            self._behind = True
            # In a pause nothing is answered, which says nothing of what can be.
            self._bearable = rate = max(per_s, self._before_per_s)
            self._room, self._noted_s = 0.0, now_s
        self._per_s = (SHARE if self._begun > GOOD * answered else GROWTH) * rate + MORE / span_s
        self._long_turns = int(long)
        self._since_s, self._since_cpu_s, self._long_s = now_s, cpu_s, 0.0
        if not long:
            self._before_per_s = per_s
        self._begun = self._refused = self._answered = 0
