"""Where an interrupted training run goes on: a folder beside the checkpoint, replaced whole after every epoch.

Every epoch draws its randomness from (seed, stage, epoch), so no generator's state has to be kept.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.artefacts import TRAINING_STATE
from fathom.errors import ArtefactError
from fathom.files import new_folder, read_json, write_json

SCHEMA_VERSION = 1

Weights = dict[str, Tensor]


@dataclass
class RunState:
    """Where a run stands, apart from the weights that it trains.

    ``stage`` and ``epoch`` come next; ``best`` are the stage's best weights so far, ``best_score`` their validation
    NDCG@10, and ``stale`` the validations since then; ``seconds`` what training took so far.
    """

    stage: int = 0
    epoch: int = 0
    stale: int = 0
    best_score: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Weights = field(default_factory=dict)


_STORED = ("stage", "epoch", "stale", "best_score", "seconds", "history")


@dataclass(frozen=True)
class TrainState:
    """A run after a whole epoch.

    ``fingerprint`` names config, data and starting weights: another run's state is not ours. ``optimizer`` is torch's
    own per-parameter state.
    """

    fingerprint: str
    run: RunState
    weights: Weights
    optimizer: dict[int, Weights]

    def save(self, path: Path) -> None:
        """Replace the folder as a whole."""
        with new_folder(path, TRAINING_STATE) as folder:
            save_file(_plain(self.weights), folder / "model.safetensors")
            save_file(_plain(self.run.best), folder / "best.safetensors")
            flat = {f"{index}.{name}": t for index, slots in self.optimizer.items() for name, t in slots.items()}
            save_file(_plain(flat), folder / "optimizer.safetensors")
            head = {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint}
            write_json(folder / "state.json", head | {name: getattr(self.run, name) for name in _STORED})


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
        run = RunState(**{name: numbers[name] for name in _STORED}, best=load_file(path / "best.safetensors"))
        return TrainState(fingerprint, run, load_file(path / "model.safetensors"), optimizer)
    except (ArtefactError, KeyError, OSError, SafetensorError):
        return None  # Nothing usable: the run starts from its beginning, as it would without a state.


def copy_weights(weights: Weights) -> Weights:
    """A copy on the CPU that later steps do not change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


def _plain(tensors: Weights) -> Weights:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
