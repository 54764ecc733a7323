"""Shapley: each layer's share of what all layers gain together."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.errors import optional
from fathom.importance.interface import Batch, LayeredModel
from fathom.importance.lattice.lattice import judge_subsets

PERMUTATIONS = 16
"""Orders in which layers are added; each is followed backwards too."""


class Shapley:
    """A layer's mean gain over the orders in which layers could be added to a model that has none.

    Formula     E_x E_order [L(x with the layers before it) - L(x with the layer too)], with L = -log p(true label);
                layers that do not run are the identity. A sample's row sums to its L(no layer) - L(all layers).
                Estimated from 16 random orders, each added to one by one and then taken from in the same order, by
                SHAP's permutation explainer: exact where no more than two layers at a time act together. Negative when
                the layer harms.
    Reference   Lundberg and Lee 2017, arXiv 1705.07874 (SHAP); Castro et al. 2009, Polynomial calculation of the
                Shapley value based on sampling; Mitchell et al. 2022, arXiv 2104.12199 (antithetic orders)
    Cost        16 orders of 2 L subsets, which share what they begin with: about 8 L forward passes
    Cannot see  what retraining would repair; which layers go well together; the draw of orders is not in the interval,
                which is over samples: all samples meet the same orders. Half of the subsets are shorter than any model
                that one would run, and count as much as the others.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per sample: the Shapley value of each layer, in nats (samples, layers) float64.

        Raises MissingExtraError without shap.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return torch.cat([self._batch(model, batch, seed) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch, seed: int) -> Tensor:
        layers = len(model.layers)

        def gains(coalitions: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
            bits = coalitions.astype(np.int64) @ (1 << np.arange(layers))
            masks, place = np.unique(bits, return_inverse=True)
            losses, _ = judge_subsets(model, batch, masks)
            return -losses.astype(np.float64).T[place]

        # All subsets of an order at once, so that they share hidden states.
        subsets = 2 * layers + 1
        with _own_random_state():
            explain = _explainer()(gains, _only, seed=seed)
            values = explain(
                np.ones((1, layers)), max_evals=PERMUTATIONS * subsets, batch_size=subsets, silent=True
            ).values
        return torch.from_numpy(values.reshape(layers, -1).T.copy())


def _only(chosen: NDArray[np.bool_], players: NDArray[np.float64]) -> NDArray[np.float64]:
    """The masker: the players (layers,) with 0 for those who are not chosen, (1, layers)."""
    return (players * chosen)[None]


def _explainer() -> Any:
    with warnings.catch_warnings():
        # Its plots, which come with it, call a function of matplotlib that is to go.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return optional("shap", "importance").PermutationExplainer


@contextmanager
def _own_random_state() -> Iterator[None]:
    """SHAP seeds numpy's global generator, which is put back as it was."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)
