"""A limit of work: a token bucket."""

from collections.abc import Sequence


class Bucket:
    """Fills with ``rate`` plain requests a second up to ``burst``; what asks for more than that empties a full one.

    ``now_s``: on any clock that never goes back.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._left = burst
        self._at_s: float | None = None

    def wait_s(self, work: float, now_s: float) -> float:
        """In how many seconds so much work may be taken; 0: now."""
        return max(0.0, min(work, self.burst) - self._filled(now_s)) / self.rate

    def take(self, work: float, now_s: float) -> None:
        """Take so much; what is not there is owed."""
        self._left, self._at_s = self._filled(now_s) - work, now_s

    def _filled(self, now_s: float) -> float:
        since_s = 0.0 if self._at_s is None else now_s - self._at_s
        return min(self.burst, self._left + self.rate * since_s)


def take_all(buckets: Sequence[Bucket], work: float, now_s: float) -> float:
    """Take work from all buckets, or from none; returns in how many seconds to try again, 0: it was taken."""
    wait_s = max((each.wait_s(work, now_s) for each in buckets), default=0.0)
    if not wait_s:
        for each in buckets:
            each.take(work, now_s)
    return wait_s
