"""Whether live requests are still like the histories in the bundle's data, feature by feature."""

from collections.abc import Mapping
from typing import NamedTuple

from fathom.selector.betting import Evidence
from fathom.selector.complexity import Complexity
from fathom.selector.features import Features
from fathom.selector.scale import Scale

#: A mean rank of live requests that far from 1/2 is no drift yet: no two samples are quite alike.
TOLERANCE = 0.1
COMPLEXITY = "complexity"


class Reading(NamedTuple):
    """``mean_rank``: of live requests among the data's histories, 0 to 1; 1/2 where they are alike."""

    feature: str
    mean_rank: float
    alarm: bool


class _Ranks:
    """The ranks of one feature, and bets that their mean is lower or higher than is tolerated."""

    def __init__(self, scale: Scale) -> None:
        self.low, self.high = Evidence(0.5 - TOLERANCE), Evidence(0.5 - TOLERANCE)
        self.alarm = False
        self._scale = scale

    def add(self, value: float) -> None:
        rank = self._scale.rank(value)
        self.low.add(rank)
        self.high.add(1 - rank)

    @property
    def capital(self) -> float:
        return max(self.low.capital, self.high.capital)


class FeatureDrift:
    """Compares the features and the complexity of live requests with those of the data's histories, by their ranks.

    ``scales``: of each feature that has one, and of ``COMPLEXITY``. While all mean ranks are within ``TOLERANCE`` of
    1/2, any alarm is ever raised with probability at most ``alpha``, whenever one looks: it is split over two bets for
    each feature. An alarm stays.
    """

    def __init__(self, scales: Mapping[str, Scale], alpha: float) -> None:
        self.samples = 0
        self._ranks = {name: _Ranks(scale) for name, scale in scales.items()}
        self._capital_needed = 2 * len(scales) / alpha

    @property
    def readings(self) -> list[Reading]:
        """What was found so far; the mean ranks are 0 before the first sample."""
        return [Reading(name, ranks.low.mean, ranks.alarm) for name, ranks in self._ranks.items()]

    def add(self, features: Features, complexity: float) -> str | None:
        """Take one request; unknown features say nothing. Returns what has drifted, where this raises an alarm."""
        self.samples += 1
        raised = []
        for name, ranks in self._ranks.items():
            value = complexity if name == COMPLEXITY else getattr(features, name)
            if value != value:
                continue
            ranks.add(value)
            if not ranks.alarm and ranks.capital >= self._capital_needed:
                ranks.alarm = True
                raised.append(f"{name} {ranks.low.mean:.2f}")
        if not raised:
            return None
        return (
            f"live requests are no longer like the training data; mean ranks, 0.5 in training: {', '.join(raised)}"
            f" (of {self.samples} requests)"
        )


def training_scales(model: Complexity) -> dict[str, Scale]:
    """What ``FeatureDrift`` compares with."""
    known = {name: scale for name, scale in model.scales.items() if scale is not None}
    return known | {COMPLEXITY: model.scale}
