"""Greedy elimination: layers in the order in which a model can best do without them."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.errors import DataError
from fathom.importance.interface import Batch, LayeredModel
from fathom.importance.jackknife import FOLDS, centred_pseudo_values, folds_of
from fathom.importance.lattice.lattice import judge_subsets


class GreedyElimination:
    """How long a layer stays when the layers are removed one by one, always the one that is missed least.

    Formula     the place of the layer's removal, 0 for the first to L - 1 for the one that is left; removed is the
                layer whose removal leaves the lowest E_x L(x), with L = -log p(true label), given what is gone
                already. Of equal ones the last by index goes first. The layers that remain are those of the shortened
                model at each size, so the sizes are nested by construction. A place and not the loss at the time:
                losses need not rise from one removal to the next, and the order is what is chosen by.
    Reference   Marill and Green 1963, On the effectiveness of receptors in recognition systems (backward selection);
                Zhong et al. 2024, BlockPruner, arXiv 2406.10594 (iterative removal of blocks by the loss)
    Cost        L^2 / 2 subsets, and more for each of 10 folds whose elimination takes another turn: about 600 for 16
                layers, the work of 8 L to 10 L forward passes, for they share what they begin with and none is measured
                twice. Rows are jackknife pseudo-values over the folds, shifted so that their mean is the order on all
                samples; places jump, so the interval is a rough one.
    Cannot see  how much worse one place is than the next; layers that matter together and not alone, once one of them
                is gone; what retraining would repair; a better subset that greedy steps do not reach.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per fold: the pseudo-values of each layer's place of removal, (folds, layers) float64.

        Raises DataError for fewer than 2 samples.
        """
        means = SubsetMeans(model, batches)
        runs = torch.from_numpy(eliminate(means, len(model.layers))).double()
        if not means.are_finite:  # no loss is lower than NaN: the order says nothing
            runs *= torch.nan
        return centred_pseudo_values(runs[0], runs[1:])


class SubsetMeans:
    """The mean loss of subsets of layers, over all samples and without each fold, each subset measured once."""

    def __init__(self, model: LayeredModel, batches: Iterable[Batch]) -> None:
        self._model, self._batches = model, batches
        self._known: dict[int, NDArray[np.float64]] = {}
        self.measure({(1 << len(model.layers)) - 1})

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, mask: int) -> NDArray[np.float64]:
        """The mean loss of a measured subset over all samples, and then without each fold, (1 + folds,)."""
        return self._known[mask]

    @property
    def are_finite(self) -> bool:
        """Whether no measured loss is NaN or infinite."""
        return bool(np.isfinite(list(self._known.values())).all())

    def measure(self, masks: set[int]) -> None:
        """Measure those of these subsets that are not known yet; bit i of a mask is layer i."""
        new = np.array(sorted(masks - self._known.keys()), dtype=np.int64)
        if not len(new):
            return
        seen, sums, counts = 0, np.zeros((FOLDS, len(new))), np.zeros(FOLDS)
        for batch in self._batches:
            losses, _ = judge_subsets(self._model, batch, new)
            fold = folds_of(seen, len(losses)).numpy()
            np.add.at(sums, fold, losses)
            np.add.at(counts, fold, 1)
            seen += len(losses)
        if seen < 2:
            raise DataError(f"the greedy_elimination method needs at least 2 samples, not {seen}")
        without = (sums.sum(0) - sums[:seen]) / (seen - counts[:seen, None])
        means = np.concatenate([sums.sum(0, keepdims=True) / seen, without])
        self._known |= dict(zip(new.tolist(), means.T, strict=True))


def eliminate(means: SubsetMeans, layers: int) -> NDArray[np.int64]:
    """The place of each layer's removal, (1 + folds, layers): on all samples, then without each fold."""
    whole = (1 << layers) - 1
    runs = len(means[whole])
    places = np.full((runs, layers), layers - 1)
    left = [whole] * runs
    for place in range(layers - 1):
        # All runs take a step together, so that a subset which several of them want takes one pass.
        means.measure({mask & ~(1 << layer) for mask in left for layer in range(layers) if mask >> layer & 1})
        for run, mask in enumerate(left):
            there = [layer for layer in reversed(range(layers)) if mask >> layer & 1]
            gone = min(there, key=lambda layer: means[mask & ~(1 << layer)][run])
            places[run, gone] = place
            left[run] = mask & ~(1 << gone)
    return places
