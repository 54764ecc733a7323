"""Sample ratio mismatch: are as many units in each arm as the shares say? If not, no comparison can be believed.

A sequential multinomial test: the Bayes factor of Dirichlet-distributed shares against the configured ones. Lindon and
Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022.
"""

import math
from collections.abc import Sequence

#: A p-value below this is an alarm. Strict, because an alarm discards the experiment.
ALARM = 0.001
#: The prior's weight in units: other shares are expected to differ by about 1 / sqrt of this.
WEIGHT = 1_000.0


def log_bayes_factor(counts: Sequence[int], shares: Sequence[float], *, weight: float = WEIGHT) -> float:
    """Logarithm of the evidence against units being assigned with these shares, which sum to 1.

    While they are, its exponential ever reaches 1 / alpha with probability at most alpha.
    """
    total = math.lgamma(weight) - math.lgamma(weight + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        if count and not share:
            return math.inf
        if share:
            prior = weight * share
            total += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return total


def p_value(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Valid at every look; shares are those of the arms, of which only the ratios matter."""
    whole = sum(shares)
    if not whole:
        return 1.0
    return min(1.0, math.exp(-min(log_bayes_factor(counts, [share / whole for share in shares]), 700.0)))
