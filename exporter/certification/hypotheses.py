"""What a kind of claim says of a routing, as hypotheses about requests that betting can reject.

Each is a value per request whose mean is below zero exactly where the claim holds, with a bound that no value can
exceed. Values are never clipped at zero: with no loss at all, a clipped loss would look like a large one. A claim that
says two things holds where both are shown, each at the whole level: for it to be wrong, one of them must be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fathom.exporter.certification.outcomes import Outcomes
from fathom.selector.betting import log_evidence, values_needed
from fathom.selector.certificate import Kind
from fathom.selector.routing import Mixture, Routing
from fathom.selector.schema import Floats

#: Kind agreement: answers that share less than this of the deepest depth's top 10 are bad, and so many may be.
FLOOR, BELOW = 0.5, 0.05


class Shortfall(NamedTuple):
    """``values`` (n,), none of which can be above ``largest``: their mean is below zero where nothing falls short."""

    values: Floats
    largest: float


@dataclass(frozen=True)
class Terms:
    """What is to be shown of a routing. ``floor``, ``below``: of kind agreement only."""

    kind: Kind
    eps: float
    floor: float = FLOOR
    below: float = BELOW

    def shortfalls(self, routing: Routing, requests: Outcomes) -> list[Shortfall]:
        """The hypotheses about a routing. ``requests``: at its depths."""
        # What every request has of the deepest depth, whose answer is the very one that is promised.
        deepest = routing.shares[-1] if isinstance(routing, Mixture) else 0.0
        kept = self.kept(routing, requests)
        if self.kind == "quality":
            return [Shortfall((1 - self.eps) * requests.quality[:, -1] - kept, 1 - self.eps - deepest)]
        found = [Shortfall(1 - self.eps - kept, 1 - self.eps - deepest)]
        # With fewer elsewhere than may be bad, there is nothing to show.
        if 1 - deepest > self.below + 1e-9:
            found.append(Shortfall(self.under(routing, requests) - self.below, 1 - deepest - self.below))
        return found

    def kept(self, routing: Routing, requests: Outcomes) -> Floats:
        """What each request is expected to get, (n,): quality, or the share of the deepest depth's top 10."""
        given = requests.quality if self.kind == "quality" else _agreement(requests)
        expected: Floats = (routing.probabilities(requests.features) * given).sum(1)
        return expected

    def under(self, routing: Routing, requests: Outcomes) -> Floats:
        """The chance of each request that less than ``floor`` of the deepest depth's top 10 is given to it, (n,)."""
        chances = routing.probabilities(requests.features)
        found: Floats = (chances * (_agreement(requests) < self.floor - 1e-9)).sum(1)
        return found

    def evidence(self, routing: Routing, counted: Sequence[Outcomes], *, level: float) -> float:
        """That the routing keeps what is promised, however requests are counted: see ``log_evidence``.

        ``counted``: at its depths.
        """
        return min(
            log_evidence(values, largest=largest, delta=level)
            for each in counted
            for values, largest in self.shortfalls(routing, each)
        )

    def needed(self, routing: Routing, counted: Sequence[Outcomes], *, level: float) -> int | None:
        """About how many requests such as these would show it; None where a mean is not below zero."""
        needed = [
            values_needed(values, largest=largest, delta=level)
            for each in counted
            for values, largest in self.shortfalls(routing, each)
        ]
        known = [count for count in needed if count is not None]
        return max(known) if len(known) == len(needed) else None


def _agreement(requests: Outcomes) -> Floats:
    """As ``requests.agreement``, where the deepest depth agrees with itself even if it has nothing to give."""
    return np.column_stack([requests.agreement[:, :-1], np.ones(len(requests))])
