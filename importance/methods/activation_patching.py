"""Activation patching: a layer's contribution replaced by another sample's."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.importance.interface import Batch, LayeredModel, hidden_states, run_layers


@dataclass(frozen=True)
class Run:
    """A batch run as it is: its hidden states at every boundary and which positions are real."""

    states: list[Tensor]
    real: Tensor


class ActivationPatching:
    """How much worse the model predicts when a layer writes what it wrote for another sample.

    Formula     E_x [L(x with the layer's x_out - x_in of a donor) - L(x)], with L = -log p(true label). Donors are the
                other samples of the batch, drawn as one random circle for all layers; each keeps its own context. The
                newest real position gives to the newest, the one before it to the one before, and so on; where the
                donor is shorter, the sample keeps its own. A batch of one has its donor in the batch before it.
    Reference   Zhang and Nanda 2023, arXiv 2309.16042 (activation patching, by corruption within the distribution);
                Chan et al. 2022, Causal scrubbing (resample ablation)
    Cost        L/2 forward passes: the hidden states before the patched layer are re-used
    Cannot see  what a layer adds to all samples alike, for the donor brings it too; layers that stand in for each
                other; positions older than the donor's oldest.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per sample: the rise of its loss when each layer's contribution is a donor's, (samples, layers).

        Raises DataError when there is only one sample.
        """
        rows: list[Tensor] = []
        before: Run | None = None
        with torch.no_grad():
            for batch in batches:
                own = _run(model, batch)
                if len(own.real) > 1:
                    donors, chosen = own, _circle(len(own.real), generator)
                else:
                    donors = before or _second(model, batches)
                    chosen = torch.randint(len(donors.real), (1,), generator=generator)
                rows.append(self._batch(model, batch, own, donors, chosen))
                before = own
        return torch.cat(rows)

    def _batch(self, model: LayeredModel, batch: Batch, own: Run, donors: Run, chosen: Tensor) -> Tensor:
        source, given = _aligned(own.real, donors.real[chosen])
        complete = model.losses(batch, own.states[-1])
        rises = complete.new_zeros(len(complete), len(model.layers))
        for place, layer in enumerate(model.layers):
            update = (donors.states[place + 1] - donors.states[place])[chosen]
            donated = own.states[place] + update.gather(1, source.expand(-1, -1, update.shape[2]))
            patched = torch.where(given, donated, own.states[place + 1])
            patched = run_layers(model, batch, patched, model.layers[place + 1 :])
            rises[:, layer] = model.losses(batch, patched) - complete
        return rises


def _run(model: LayeredModel, batch: Batch) -> Run:
    return Run(hidden_states(model, batch), model.real_positions(batch))


def _second(model: LayeredModel, batches: Iterable[Batch]) -> Run:
    """The second batch, from which the first takes when it holds one sample only."""
    for batch in islice(batches, 1, 2):
        return _run(model, batch)
    raise DataError("the activation_patching method exchanges samples, and needs at least 2")


def _circle(samples: int, generator: torch.Generator) -> Tensor:
    """A donor for each sample, never itself, int64 (samples,)."""
    order = torch.randperm(samples, generator=generator)
    donors = torch.empty_like(order)
    donors[order] = order.roll(1)
    return donors


def _aligned(real: Tensor, donor_real: Tensor) -> tuple[Tensor, Tensor]:
    """For each position the donor's position that is as many real ones back, and whether both are real.

    int64 and bool (samples, positions, 1), for ``real`` (samples, positions) and ``donor_real`` (samples, any).
    """
    back = real.flip(1).cumsum(1).flip(1) - 1
    newest_first = donor_real.shape[1] - 1 - donor_real.flip(1).int().argsort(dim=1, descending=True, stable=True)
    source = newest_first.gather(1, back.clamp(0, donor_real.shape[1] - 1))
    given = real & (back < donor_real.sum(1, keepdim=True))
    return source[..., None], given[..., None]
