"""Whether routed answers still agree with the deepest depth's as the certificate promised."""

from fathom.selector.betting import Evidence
from fathom.selector.certificate import Claim


class Monitor:
    """An e-process over the agreement of routed answers with the deepest depth's.

    The alarm is raised wrongly, ever, with probability at most ``alpha``, and stays.
    """

    def __init__(self, claim: Claim, alpha: float) -> None:
        assert claim.agreement is not None
        self.evidence = Evidence(claim.agreement)
        self.alarm = False
        self._depths = claim.depths
        self._alpha = alpha

    def add(self, agreement: float) -> bool:
        """Take the share of the deepest depth's top 10 that a routed request was given too.

        Returns whether this raises the alarm.
        """
        self.evidence.add(agreement)
        raised = not self.alarm and self.evidence.capital >= 1 / self._alpha
        self.alarm |= raised
        return raised

    @property
    def finding(self) -> str:
        """What the alarm says."""
        evidence = self.evidence
        depths = ", ".join(map(str, self._depths))
        return (
            f"the certificate for depths {depths} no longer fits: of {evidence.count} requests run twice,"
            f" {100 * evidence.mean:.1f} % of the top 10 agree, at least {100 * evidence.expected:.1f} % were promised;"
            f" their requests now get depth {self._depths[-1]}, until the bundle is exchanged"
        )
