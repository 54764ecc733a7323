"""Trains a checkpoint on in the order of a DepthPlan, so that layers learn to work beside their new neighbours."""

from collections.abc import Callable
from pathlib import Path

from fathom.errors import ArtefactError
from fathom.exporter.planning.plan import DepthPlan
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.presets import TrainConfig
from fathom.training.train import TrainProgress, fit


def heal(
    checkpoint: Checkpoint,
    plan: DepthPlan,
    dataset: Dataset,
    *,
    out: Path,
    config: TrainConfig | None = None,
    progress: Callable[[TrainProgress], None] = lambda _: None,
) -> Checkpoint:
    """Write a checkpoint of the same model that executes the plan's layers; returns it.

    ``config`` defaults to what the checkpoint was trained with; its ``heal_epochs`` and ``heal_learning_rate`` count.
    Resumable like ``fit``. Raises PlanError when the plan does not fit the model, ArtefactError for another dataset.
    """
    plan.validate(checkpoint.model.config.layers)
    check_dataset(checkpoint, dataset)
    model = checkpoint.model.merged().with_paths(plan.paths, plan.strategy)
    return fit(config or checkpoint.config.train, dataset, out=out, model=model, progress=progress)


def check_dataset(checkpoint: Checkpoint, dataset: Dataset, called: str = "the checkpoint") -> None:
    """Raise ArtefactError unless the checkpoint was trained on this dataset."""
    if checkpoint.config.dataset != dataset.sha256:
        raise ArtefactError(
            f"{called} was trained on dataset {checkpoint.config.dataset[:12]}, not on {dataset.sha256[:12]};"
            " give the dataset it was trained on, or train again"
        )
