"""Stacked exits: each deeper exit is a correction of the one below it, learned while everything below stays as it is.

The layers in between start as identities and the exit as a copy, so a stage starts from the answers of the exit below
and ends there unless validation shows a gain: no exit is worse on validation than a shallower one.
"""

import math

from fathom.training.metrics import Floats
from fathom.training.model import ElasticModel, prefix_paths


def train_only(model: ElasticModel, depth: int, below: int) -> None:
    """Freeze, in place, all but the exit of a depth and those of its layers that the depth ``below`` lacks."""
    model.zero_grad(set_to_none=True)  # or what an earlier stage left would count when gradients are clipped
    model.requires_grad_(False)
    model.exits[str(depth)].requires_grad_(True)
    for layer in set(model.config.paths[depth]).difference(model.config.paths[below]):
        model.block(layer).requires_grad_(True)


def hand_on(model: ElasticModel, depth: int) -> None:
    """Start the exits above this depth as copies of its own, in place."""
    for deeper in (other for other in model.depths if other > depth):
        model.exits[str(deeper)].load_state_dict(model.exits[str(depth)].state_dict())


def is_gain(values: Floats, others: Floats) -> bool:
    """Whether values (cases,) are larger in the mean by more than one standard error of the paired difference."""
    gained = values - others
    return bool(gained.mean() > gained.std() / math.sqrt(len(gained)))


def in_order(model: ElasticModel) -> bool:
    """Whether every depth runs the first layers, in order, as when its exits were stacked."""
    return model.config.paths == prefix_paths(model.depths)
