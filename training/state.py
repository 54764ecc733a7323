"""Where an interrupted training run goes on: a folder beside the checkpoint, replaced whole after every epoch.

Every epoch draws its randomness from (seed, stage, epoch), so no generator's state has to be kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.artefacts import TRAINING_STATE
from fathom.errors import ArtefactError
from fathom.files import new_folder, read_json, remove_folder, write_json

SCHEMA_VERSION = 1

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TrainState:
    """A run after a whole epoch.

    ``fingerprint`` names config, data and starting weights: another run's state is not ours. ``stage`` and
    ``epoch`` come next; ``best`` are the stage's best weights so far, ``best_score`` their validation NDCG@10, and
    ``stale`` the validations since then; ``seconds`` what training took so far. ``optimizer`` is
    torch's own per-parameter state.
    """

    fingerprint: str
    stage: int
    epoch: int
    stale: int
    best_score: float
    seconds: float
    weights: Weights
    best: Weights
    optimizer: dict[int, Weights]
    history: tuple[dict[str, Any], ...]

    def save(self, path: Path) -> None:
        """Replace the folder as a whole."""
        with new_folder(path, TRAINING_STATE) as folder:
            save_file(_plain(self.weights), folder / "model.safetensors")
            save_file(_plain(self.best), folder / "best.safetensors")
            flat = {f"{index}.{name}": t for index, slots in self.optimizer.items() for name, t in slots.items()}
            save_file(_plain(flat), folder / "optimizer.safetensors")
            numbers = {
                "schema_version": SCHEMA_VERSION,
                "fingerprint": self.fingerprint,
                "stage": self.stage,
                "epoch": self.epoch,
                "stale": self.stale,
                "best_score": self.best_score,
                "seconds": self.seconds,
                "history": self.history,
            }
            write_json(folder / "state.json", numbers)


def load_state(path: Path, fingerprint: str) -> TrainState | None:
    """The state in this folder, or None where there is none that belongs to this run."""
    try:
        numbers = read_json(path / "state.json", kind="training state", schema_version=SCHEMA_VERSION)
        if numbers.pop("fingerprint", None) != fingerprint:
            return None
        optimizer: dict[int, Weights] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            optimizer.setdefault(int(index), {})[name] = value
        return TrainState(
            fingerprint=fingerprint,
            stage=numbers["stage"],
            epoch=numbers["epoch"],
            stale=numbers["stale"],
            best_score=numbers["best_score"],
            seconds=numbers["seconds"],
            weights=load_file(path / "model.safetensors"),
            best=load_file(path / "best.safetensors"),
            optimizer=optimizer,
            history=tuple(numbers["history"]),
        )
    except (ArtefactError, KeyError, OSError, SafetensorError):
        return None  # Nothing usable: the run starts from its beginning, as it would without a state.


def remove_state(path: Path) -> None:
    """Forget the state once the checkpoint is written."""
    remove_folder(path, TRAINING_STATE)


def copy_weights(weights: Weights) -> Weights:
    """A copy on the CPU that later steps do not change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


def _plain(tensors: Weights) -> Weights:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
