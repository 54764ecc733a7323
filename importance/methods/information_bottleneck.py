"""Information bottleneck: what each layer tells of the answer, less a charge for what it keeps of the input."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fathom.errors import DataError, optional
from fathom.importance.features import at_boundaries, by_layer, newest_states_and_targets, principal_components
from fathom.importance.interface import Batch, LayeredModel
from fathom.importance.jackknife import without_each_fold
from fathom.importance.statistics import Floats

BETA = 0.01
COMPONENTS = 8
NOISE = 0.01
"""The least variance a probe may claim, as a share of that of what it predicts."""
PENALTIES = tuple(10.0**power for power in range(6))
FEWEST_SAMPLES = 5


class InformationBottleneck:
    """How much a layer raises what its state tells of the answer, less beta times what it tells of the input.

    Formula     E_x [(i_Y(out) - i_Y(in)) - beta (i_X(out) - i_X(in))] in nats, where i_Y = log q(y | t) - log q(y) is a
                sample's term of the variational lower bound of I(T; Y), and i_X the same of I(X; T). q is a Gaussian
                about a ridge regression on t, fitted without the sample's fold, so that the bound is a held-out one;
                log q(y) cancels. t is the state at the newest real position, y the vector of the right answer and x
                the mean of the embedding over real positions, both as their 8 largest principal components of
                variance 1. A layer that is the identity scores exactly 0. beta = 0.01: since the answer depends on the
                state through the input only, I(X; T) >= I(T; Y), many times over in practice, and a beta near 1 would
                reward nothing but forgetting; Alemi et al. use 0.001 and more. Probes claim no less than 1 % of a
                component's variance, or I(X; T), which is infinite for a state computed without noise, would be
                decided by rounding.
    Reference   Tishby and Zaslavsky 2015, arXiv 1503.02406; Alemi et al. 2017, arXiv 1612.00410 (variational bound)
    Cost        one forward pass, and 20 ridge regressions at each boundary
    Cannot see  what is not linear in the state: a layer that rotates information into the open for later layers
                scores nothing, so bounds differ from the truth by layers; other positions than the newest.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the held-out gain of each layer in nats, (samples, layers) float64.

        Raises DataError for fewer than 5 samples, MissingExtraError without scikit-learn.
        """
        states, targets = newest_states_and_targets(model, batches)
        if len(states) < FEWEST_SAMPLES:
            raise DataError(
                f"the information_bottleneck method needs at least {FEWEST_SAMPLES} samples, not {len(states)}"
            )
        answers = _whitened(targets)
        inputs = _whitened(torch.cat([_mean_embedding(model, batch) for batch in batches]).numpy())
        objectives = at_boundaries(
            states, lambda state: held_out_log_density(state, answers) - BETA * held_out_log_density(state, inputs)
        )
        return by_layer(np.diff(np.stack(objectives, axis=1), axis=1), model.layers)


def held_out_log_density(features: Floats, targets: Floats) -> Floats:
    """log q(target | features) in nats, (samples,), each sample's by a Gaussian fitted without its fold.

    features (samples, width) and targets (samples, components); targets have variance about 1.
    """
    ridge = optional("sklearn.linear_model", "importance").RidgeCV
    density = np.zeros(len(features))
    if targets.shape[1] == 0:
        return density
    for kept in without_each_fold(len(features)).numpy():
        spread = features[kept].std(0)
        scaled = (features - features[kept].mean(0)) / np.where(spread > 0, spread, 1)
        probe = ridge(PENALTIES, alpha_per_target=True, store_cv_results=True).fit(scaled[kept], targets[kept])
        # Squared errors with each fitted sample left out in turn: those of the fit itself would be too small.
        variance = np.maximum(probe.cv_results_.mean(0).min(-1), NOISE)
        errors = targets[~kept] - probe.predict(scaled[~kept]).reshape(-1, targets.shape[1])
        density[~kept] = -0.5 * (np.log(2 * np.pi * variance) + errors**2 / variance).sum(1)
    return density


def _whitened(points: Floats) -> Floats:
    components = principal_components(points, COMPONENTS)
    whitened: Floats = components / components.std(0)
    return whitened


def _mean_embedding(model: LayeredModel, batch: Batch) -> Tensor:
    """The mean of each sample's embedding over its real positions, (samples, width) float64."""
    real = model.real_positions(batch)[..., None]
    with torch.no_grad():
        embedding = torch.where(real, model.embed(batch), 0.0).double()
    mean: Tensor = embedding.sum(1) / real.sum(1)
    return mean.cpu()
