"""Spectral: how much each layer changes the effective rank of the hidden states."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.importance.interface import Batch, LayeredModel, hidden_states
from fathom.importance.jackknife import FOLDS, folds_of, pseudo_values


class Spectral:
    """How much a layer opens or closes directions of the hidden state.

    Formula     |log RankMe(X_out) - log RankMe(X_in)|, where RankMe(X) = exp(entropy of the singular values of X,
                scaled to sum to 1), the effective rank. The absolute value, because both count as work: opening
                directions for what the layer found out, and closing those that are no longer needed. A row of X is a
                real position's state; the positions of a sample share its weight of 1.
    Reference   Garrido et al. 2023, RankMe, arXiv 2210.02885; Roy and Vetterli 2007 (effective rank)
    Cost        one forward pass. Rows are jackknife pseudo-values over 10 folds of samples, of the change without its
                absolute value, times the sign of the whole estimate.
    Cannot see  the loss; a layer that turns or rearranges the states within the directions they have; which of two
                layers that undo each other is needed.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per fold: the pseudo-values of each layer's change of the log effective rank, (folds, layers) float64.

        Raises DataError for fewer than 2 samples.
        """
        seen, moments = 0, torch.zeros(())
        with torch.no_grad():
            for batch in batches:
                moments = moments + _moments(model, batch, seen)
                seen += model.samples(batch)
        if seen < 2:
            raise DataError(f"the spectral method needs at least 2 samples, not {seen}")
        whole = _change(moments.sum(0), model.layers)
        without = [_change(moments.sum(0) - one, model.layers) for one in moments[:seen]]
        return whole.sign() * pseudo_values(whole, torch.stack(without))


def effective_rank(moment: Tensor) -> Tensor:
    """RankMe of states whose second moment X^T X is ``moment`` (..., width, width), (...,); 1 to width."""
    singular: Tensor = torch.linalg.eigvalsh(moment).clamp(min=0).sqrt()
    entropy: Tensor = torch.special.entr(singular / singular.sum(-1, keepdim=True)).sum(-1)
    return entropy.exp()


def _moments(model: LayeredModel, batch: Batch, seen: int) -> Tensor:
    """The sum over each fold's samples of their mean h h^T at every boundary, (folds, boundaries, w, w) float64."""
    real = model.real_positions(batch)
    fold = folds_of(seen, len(real)).to(real.device)
    share = real.sum(1).double().rsqrt()[:, None, None]
    sums = []
    for state in hidden_states(model, batch):
        rows = torch.where(real[..., None], state, 0.0).double() * share
        sums.append(rows.new_zeros(FOLDS, *[rows.shape[2]] * 2).index_add(0, fold, rows.mT @ rows))
    return torch.stack(sums, dim=1)


def _change(moments: Tensor, layers: tuple[int, ...]) -> Tensor:
    """The log effective rank of each layer's output less that of its input, (layers,)."""
    steps = effective_rank(moments).log().diff()
    change = torch.zeros_like(steps)
    change[list(layers)] = steps
    return change
