"""Mutual information: what each layer's output tells of the answer beyond what its input told."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.errors import DataError, optional
from fathom.importance.features import at_boundaries, by_layer, newest_states_and_targets, principal_components
from fathom.importance.interface import Batch, LayeredModel
from fathom.importance.jackknife import centred_pseudo_values, without_each_fold
from fathom.importance.statistics import Floats

NEIGHBOURS = 8
"""Kraskov et al. advise 2 to 4 for little bias and more for little variance, which a difference needs."""
COMPONENTS = 4
FEWEST_SAMPLES = 5


class MutualInformation:
    """How much more a layer's output tells of the right answer than its input did.

    Formula     I(T_out; Y) - I(T_in; Y) in nats, where T is a sample's state at its newest real position, which
                answers are read from, and Y the vector of its right answer. Each I is the sum over pairs of one of the
                4 largest principal components of T and one of the 4 of Y of the pair's mutual information, by k nearest
                neighbours (k = 8). The difference, because a layer hands on what its input told: only what it adds is
                its own, and a layer that is the identity scores exactly 0. Negative when the layer loses information.
    Reference   Kraskov et al. 2004, Estimating mutual information (estimator 1, as scikit-learn has it)
    Cost        one forward pass, and 11 estimates of 16 pairs at each boundary. Rows are jackknife pseudo-values over
                10 folds of samples, shifted so that their mean is the estimate from all samples; the principal
                components are those of all samples throughout.
    Cannot see  what lies outside the few components, or in three of them together and in no pair: neighbours say
                nothing in many dimensions, where the estimate is biased far below the truth, so it is taken pair by
                pair, and pairs that tell the same are counted twice. Estimates below 0 are set to 0, so that unrelated
                pairs add a little. By the data processing inequality no layer adds information about Y given the whole
                input: it makes it easier to read, at this position and in these components.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per fold: the pseudo-values of the information that each layer adds, in nats (folds, layers) float64.

        Raises DataError for fewer than 5 samples, MissingExtraError without scikit-learn.
        """
        states, targets = newest_states_and_targets(model, batches)
        if len(states) < FEWEST_SAMPLES:
            raise DataError(f"the mutual_information method needs at least {FEWEST_SAMPLES} samples, not {len(states)}")
        seed = int(torch.randint(2**31, (1,), generator=generator))
        components = at_boundaries(states, lambda state: principal_components(state, COMPONENTS))
        answers = principal_components(targets, COMPONENTS)

        def gains(kept: NDArray[np.bool_]) -> Tensor:
            told = [0.0] * len(components)
            for place, component in enumerate(components):
                known = place > 0 and component is components[place - 1]
                told[place] = told[place - 1] if known else _information(component[kept], answers[kept], seed)
            return by_layer(np.diff(told), model.layers)

        without = torch.stack([gains(kept) for kept in without_each_fold(len(states)).numpy()])
        return centred_pseudo_values(gains(np.full(len(states), True)), without)


def _information(components: Floats, answers: Floats, seed: int) -> float:
    """The sum of I(component; answer) over all pairs, in nats."""
    estimate = optional("sklearn.feature_selection", "importance").mutual_info_regression
    if components.shape[1] == 0:
        return 0.0
    neighbours = min(NEIGHBOURS, len(components) // 2)
    # The seed is that of the tiny noise that parts equal values.
    settings = {"discrete_features": False, "n_neighbors": neighbours, "random_state": seed}
    return float(np.sum([estimate(components, answer, **settings) for answer in answers.T]))
