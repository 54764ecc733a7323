"""Toy networks whose layers matter as much as a test says, and the pieces that tests of methods share."""

import torch
from torch import Tensor

from fathom.importance.adapter import ElasticLayers, Histories
from fathom.importance.interface import ImportanceMethod, run_skipping
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches
from fathom.training.model import ElasticModel, ModelConfig

IRRELEVANT, WEAK, DECISIVE = 0.0, 0.05, 2.0
ITEMS = 30


class Careful(GatedToy):
    """Reads no padding itself, and looks at all real positions alike."""

    def attention(self, batch: ToyBatch, layer: int, hidden: Tensor) -> Tensor:  # type: ignore[override]
        scores = (self.blocks[layer](hidden) @ hidden.mT).masked_fill(~batch.real[:, None], -torch.inf)
        return scores.softmax(-1)[:, None]

    def _logits(self, batch: ToyBatch, hidden: Tensor) -> Tensor:
        real = batch.real[..., None]
        logits: Tensor = self.readout(torch.where(real, hidden, 0.0).sum(1) / real.sum(1))
        return logits


class Reversed(GatedToy):
    """Runs its layers from the last to the first."""

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(reversed(range(len(self.blocks))))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def learned(model: GatedToy, batches: list[ToyBatch]) -> list[ToyBatch]:
    """The same inputs labelled by the model itself, so that what it does is right and skipping does harm."""
    return [
        ToyBatch(batch.inputs, model._logits(batch, run_skipping(model, batch)).argmax(-1), batch.real)
        for batch in batches
    ]


def part_of(batch: ToyBatch, part: slice | Tensor) -> ToyBatch:
    return ToyBatch(batch.inputs[part], batch.labels[part], batch.real[part])


def elastic() -> ElasticLayers:
    torch.manual_seed(0)
    config = {"items": ITEMS, "layers": 4, "paths": {4: (0, 2, 1, 3)}, "strategy": "permuted-prefix"}
    model = ElasticModel(ModelConfig.model_validate(config | {"width": 16, "max_history": 12, "time_bias": False}))
    return ElasticLayers(model.double())


def histories(model: ElasticLayers, users: int, *, padding: int) -> list[Histories]:
    random = torch.Generator().manual_seed(1)
    items = torch.randint(1, ITEMS + 1, (users, 7), generator=random)
    items[::3, :4] = 0
    items = torch.nn.functional.pad(items, (padding, 0))
    return [model.batch(items, None, torch.randint(ITEMS, (users,), generator=random))]


def check_rows(method: ImportanceMethod, folded: tuple[type, ...]) -> tuple[GatedToy, ToyBatch, Tensor]:
    """Rows are samples, or folds for methods of these kinds, and the same each time; returns what they are of."""
    model, (whole,) = Careful([1.0, 0.5, 0.2]), toy_batches(1, 24)
    rows = method.scores(model, [whole], generator())
    assert rows.shape == (10 if isinstance(method, folded) else 24, 3)
    assert not rows.requires_grad
    assert torch.equal(method.scores(model, [whole], generator()), rows)
    return model, whole, rows
