"""Topology: how much each layer changes the shape of the cloud that the samples' states form."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.errors import DataError, optional
from fathom.importance.features import at_boundaries, by_layer
from fathom.importance.interface import Batch, LayeredModel, newest_states
from fathom.importance.jackknife import FOLDS, centred_pseudo_values, without_each_fold
from fathom.importance.statistics import Floats

MOST_POINTS = 300
"""Persistent homology takes time and memory with the cube of the points."""
FEWEST_POINTS = 4
"""Three points make no loop, also when a fold is left out."""

Diagrams = tuple[Floats, Floats]


class Topology:
    """How far a layer moves the clusters and loops of the samples' states.

    Formula     [W(H0_in, H0_out) + W(H1_in, H1_out)] / points: the Wasserstein distance between the persistence
                diagrams of the clouds before and after the layer, components (H0) and loops (H1) of their Vietoris-Rips
                filtrations; 0 and more for the whole cloud. A point is a sample's state at its newest real position.
                Distances are divided by their mean in the same cloud, so that a layer which only stretches scores 0.
                Wasserstein and not bottleneck, which sees only the one feature that changed most.
    Reference   Naitzat et al. 2020, arXiv 2004.06093 (topology through the layers); Bauer 2021, arXiv 1908.02518
                (Ripser); Cohen-Steiner et al. 2010, Lipschitz functions have Lp-stable persistence
    Cost        one forward pass, and 11 (L + 1) clouds of at most 300 samples, drawn at random where there are more; a
                cloud of 256 takes 0.05 s. Rows are jackknife pseudo-values over 10 folds of samples, shifted so that
                their mean is that of the whole cloud.
    Cannot see  the loss, or which sample lies where: a layer that exchanges samples and keeps the cloud's shape;
                rotations; other positions. A few hundred points in many dimensions have few loops but by chance, so
                most of the score is distances between nearest neighbours (H0).
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per fold: the pseudo-values of how far each layer moves the diagrams, (folds, layers) float64.

        Raises DataError for fewer than 5 samples, MissingExtraError without ripser or persim.
        """
        states = torch.cat([newest_states(model, batch).cpu() for batch in batches])
        if len(states) <= FEWEST_POINTS:
            raise DataError(f"the topology method needs at least {FEWEST_POINTS + 1} samples, not {len(states)}")
        drawn = torch.randperm(len(states), generator=generator)[:MOST_POINTS].sort().values
        clouds = at_boundaries(states[drawn].numpy(), distances)
        if not np.isfinite(clouds).all():  # Ripser would pass over such a point
            return states.new_full((FOLDS, len(model.layers)), torch.nan)
        without = [_changes(clouds, kept) for kept in without_each_fold(len(drawn)).numpy()]
        whole = _changes(clouds, np.full(len(drawn), True))
        return centred_pseudo_values(by_layer(whole, model.layers), by_layer(np.stack(without), model.layers))


def distances(points: Floats) -> Floats:
    """The Euclidean distance between any two points (samples, width), (samples, samples)."""
    rows = torch.from_numpy(points)
    # By differences: through products, close points would be too far apart.
    apart: Floats = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return apart


def diagrams(cloud: Floats) -> Diagrams:
    """Birth and death of components and of loops, (features, 2) each, in units of the mean distance.

    cloud (samples, samples): distances. The component that never dies is left out.
    """
    ripser = optional("ripser", "importance").ripser
    unit = cloud.sum() / (len(cloud) * (len(cloud) - 1))
    components, loops = ripser(cloud / unit if unit > 0 else cloud, maxdim=1, distance_matrix=True)["dgms"]
    return components[np.isfinite(components[:, 1])], loops


def _changes(clouds: list[Floats], kept: NDArray[np.bool_]) -> Floats:
    """How far the diagrams move from each boundary to the next, (layers,), for the points that are kept."""
    changes = np.zeros(len(clouds) - 1)
    before = diagrams(clouds[0][np.ix_(kept, kept)])
    for place in range(1, len(clouds)):
        if clouds[place] is clouds[place - 1]:
            continue
        after = diagrams(clouds[place][np.ix_(kept, kept)])
        wasserstein = optional("persim", "importance").wasserstein
        moved = [wasserstein(one, other) for one, other in zip(before, after, strict=True)]
        changes[place - 1] = sum(moved) / kept.sum()
        before = after
    return changes
