"""Regression that never falls."""

import numpy as np

from fathom.selector.schema import Floats


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The rising values (n,) that are nearest to these in weighted squares; ``weights`` (n,) above 0.

    Pooling adjacent violators (Barlow et al. 1972).
    """
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while means and means[-1] >= value:
            before, mass = means.pop(), masses.pop()
            value, weight = (before * mass + value * weight) / (mass + weight), mass + weight
            size += sizes.pop()
        means.append(value)
        masses.append(weight)
        sizes.append(size)
    return np.repeat(means, sizes)
