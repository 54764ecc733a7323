"""Whether routed answers still agree with the deepest depth's as the certificate promised (an e-process)."""

import logging

from fathom.selector.betting import Evidence
from fathom.selector.certificate import Claim

log = logging.getLogger("fathom.selector")


class Monitor:
    """Tests one claim by betting; the alarm is raised wrongly, ever, with probability at most ``alpha``, and stays."""

    def __init__(self, claim: Claim, alpha: float) -> None:
        assert claim.agreement is not None
        self.evidence = Evidence(claim.agreement)
        self.alarm = False
        self._depths = claim.depths
        self._alpha = alpha

    def add(self, agreement: float) -> None:
        """The share of the deepest depth's top 10 that one routed request was given too, 0 to 1."""
        evidence = self.evidence
        evidence.add(agreement)
        if not self.alarm and evidence.capital >= 1 / self._alpha:
            self.alarm = True
            log.warning(
                "the certificate for depths %s no longer fits: of %d requests run twice, %.1f %% of the top 10 agree,"
                " at least %.1f %% were promised; their requests now get depth %d, until the bundle is exchanged",
                ", ".join(map(str, self._depths)),
                evidence.count,
                100 * evidence.mean,
                100 * evidence.expected,
                self._depths[-1],
            )
