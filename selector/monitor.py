"""Whether routed answers still agree with the deepest depth's as the certificate promised, and what follows if not."""

from collections.abc import Mapping, Sequence

from fathom.selector.betting import Evidence
from fathom.selector.certificate import Claim
from fathom.selector.recertification import Recertification
from fathom.selector.routing import Routing


class Distinct:
    """Histories that were counted already, by their hash; after ``most`` of them all are forgotten."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._seen: set[int] = set()

    def add(self, history: bytes) -> bool:
        """Count a history; whether it is a new one."""
        if len(self._seen) >= self._most:
            self._seen.clear()
        before = len(self._seen)
        self._seen.add(hash(history))
        return len(self._seen) > before


class Monitor:
    """Watches the requests of a claim, raises an alarm, and may then certify another routing.

    While requests follow ``routing``, an e-process tests the agreement of answers from shallower depths with the
    deepest depth's. The alarm is raised wrongly, ever, with probability at most ``alpha``; from then on requests get
    the deepest depth. Where there is a ``recertification``, some of them are then run at every depth, until that
    evidence certifies another routing, which is watched like the one before.

    ``costs_ms``: depth -> milliseconds of a request; None: the alarm stays. ``depths``: that a routing may choose from.
    ``distinct``: histories that were run again; the same history counts once.
    """

    def __init__(self, claim: Claim, alpha: float, costs_ms: Mapping[int, float] | None = None) -> None:
        assert claim.routing is not None
        assert claim.agreement is not None
        self.recertification = None if costs_ms is None else Recertification(claim.depths, costs_ms, alpha)
        self.depths = claim.depths
        self._alpha = alpha
        self._answered = self._shallower = 0
        self._allowed: float | None = None
        self._watch(claim.routing, claim.agreement)

    def _watch(self, routing: Routing, agreement: float) -> None:
        self.routing, self.evidence = routing, Evidence(agreement)
        self.alarm, self.distinct = False, Distinct()

    def count(self, depth: int) -> None:
        """Note that a request which followed the routing was answered at this depth."""
        if not self.alarm:
            self._answered += 1
            self._shallower += depth != self.depths[-1]

    def second_runs(self, depth: int) -> tuple[int, ...]:
        """The depths that a request answered at ``depth`` should be run at too."""
        deepest = depth == self.depths[-1]
        if self.alarm:
            return self.depths[:-1] if deepest and self.recertification is not None else ()
        return () if deepest else self.depths[-1:]

    def add(self, agreements: Sequence[float]) -> str | None:
        """Take the share of the deepest depth's top 10 that a routed request was given, as the only one.

        After the alarm: that which each shallower depth would have given. Returns what this has led to, for the log.
        """
        return self._add_to_evidence(*agreements) if not self.alarm else self._add_to_recertification(agreements)

    def _add_to_evidence(self, agreement: float) -> str | None:
        self.evidence.add(agreement)
        if self.evidence.capital < 1 / self._alpha:
            return None
        if self._allowed is None:
            self._allowed = (1 - self.evidence.expected) * self._shallower / max(self._answered, 1)
        self.alarm, self.distinct = True, Distinct()
        return self._finding

    def _add_to_recertification(self, agreements: Sequence[float]) -> str | None:
        again = self.recertification
        assert again is not None
        assert self._allowed is not None
        if not again.add(agreements):
            return None
        self.distinct = Distinct()
        found = again.attempt(self._allowed)
        if found is None:
            return f"{self._named}: attempt {again.attempts} to certify again has failed; {self._next}"
        self._watch(found.routing, found.agreement)
        return (
            f"{self._named}: certified again, on agreement: {found.routing.words};"
            f" at least {100 * found.agreement:.1f} % of the top 10 of requests at the shallower depth agree"
        )

    @property
    def _named(self) -> str:
        return f"the certificate for depths {', '.join(map(str, self.depths))}"

    @property
    def _next(self) -> str:
        assert self.recertification is not None
        return f"the next attempt takes {self.recertification.needed:,} requests at every depth"

    @property
    def _finding(self) -> str:
        evidence, until = self.evidence, "until the bundle is exchanged"
        if self.recertification is not None:
            until = f"until another routing is certified: {self._next}"
        return (
            f"{self._named} no longer fits: of {evidence.count} requests run twice,"
            f" {100 * evidence.mean:.1f} % of the top 10 agree, at least {100 * evidence.expected:.1f} % were promised;"
            f" their requests now get depth {self.depths[-1]}, {until}"
        )
