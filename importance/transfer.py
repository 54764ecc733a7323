"""Transfer: what the importance of other models' layers says of a model whose own was never measured."""

from collections.abc import Sequence

import numpy as np

from fathom.errors import ConfigError
from fathom.importance.statistics import Floats, ranks_of


def transferred(known: Sequence[Sequence[float]], layers: int) -> Floats:
    """Scores (layers,) for a model with so many layers, 1 for what matters most and -1 for what matters least.

    ``known``: the importance of each layer of other models, of any number of layers. Their ranks, as a function of how
    deep a layer lies (0 for the first, 1 for the last), are interpolated linearly and averaged over the models. How
    often that is right is in docs/results.md. Raises ConfigError without a model, and for fewer than two layers.
    """
    if not len(known) or layers < 2 or min(map(len, known)) < 2:
        raise ConfigError("transfer needs a model whose layers were ranked, and two layers or more in each")
    wanted = np.linspace(0, 1, layers)
    curves = [np.interp(wanted, np.linspace(0, 1, len(scores)), _from_ranks(scores)) for scores in known]
    mean: Floats = np.mean(curves, axis=0)
    return mean


def _from_ranks(scores: Sequence[float]) -> Floats:
    """The ranks of scores, from -1 for the lowest to 1."""
    found: Floats = 1 - 2 * (np.array(ranks_of(scores), dtype=np.float64) - 1) / (len(scores) - 1)
    return found
