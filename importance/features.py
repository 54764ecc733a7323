"""Hidden states as features (samples, features) for estimators outside torch, and their values as scores again."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fathom.importance.interface import Batch, LayeredModel, newest_states
from fathom.importance.statistics import Floats

NEGLIGIBLE = 1e-6
"""A component shorter than this, beside the longest, is rounding."""

Estimate = TypeVar("Estimate")


def newest_states_and_targets(model: LayeredModel, batches: Iterable[Batch]) -> tuple[Floats, Floats]:
    """All ``newest_states`` (samples, boundaries, width) and ``targets`` (samples, features), float64."""
    pairs = [(newest_states(model, batch).cpu(), model.targets(batch).double().cpu()) for batch in batches]
    states, targets = zip(*pairs, strict=True)
    # One-hot ones end at the largest label of their batch.
    widest = max(each.shape[1] for each in targets)
    padded = [pad(each, (0, widest - each.shape[1])) for each in targets]
    return torch.cat(states).numpy(), torch.cat(padded).numpy()


def at_boundaries(states: Floats, estimate: Callable[[Floats], Estimate]) -> list[Estimate]:
    """An estimate from the state at each boundary, for states (samples, boundaries, width).

    A boundary with the same state as the one before it gets the same object: no rounding comes between the two.
    """
    estimates = [estimate(np.ascontiguousarray(states[:, 0]))]
    for place in range(1, states.shape[1]):
        same = np.array_equal(states[:, place], states[:, place - 1])
        estimates.append(estimates[-1] if same else estimate(np.ascontiguousarray(states[:, place])))
    return estimates


def principal_components(points: Floats, most: int) -> Floats:
    """The coordinates of points (samples, width) along their ``most`` longest principal axes, longest first.

    (samples, components), centred; fewer components where the points do not vary in so many directions.
    """
    left, sizes, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    kept = min(most, int((sizes > NEGLIGIBLE * sizes[0]).sum()))
    components: Floats = left[:, :kept] * sizes[:kept]
    return components


def by_layer(steps: Floats, layers: tuple[int, ...]) -> Tensor:
    """Values (..., layers) in execution order, put in the order of the layer indices."""
    ordered = np.empty_like(steps)
    ordered[..., list(layers)] = steps
    return torch.from_numpy(ordered)
