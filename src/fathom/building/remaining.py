"""How long a whole build still takes: from what its stages took last time, else in relation to its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fathom.training.presets import TrainConfig

if TYPE_CHECKING:
    from fathom.training.train import TrainProgress

#: What the stages that train nothing took in one `make run` on two cores, in epochs of all exits; a guess elsewhere.
EPOCHS = {"rank": 2.1, "plan": 0.0, "compare": 1.0, "evaluate": 0.3, "export": 3.8, "certify": 1.0}


@dataclass
class Remaining:
    """The seconds that the stages of a build still take.

    names: the stages that will run, the current one first. took: seconds of each stage when it ran last.
    """

    config: TrainConfig
    names: Sequence[str] = ()
    took: Mapping[str, float] = field(default_factory=dict)
    _work_s: float | None = None

    def in_training(self, progress: "TrainProgress") -> float | None:
        """After a batch of the current stage; None before training can tell how long it takes itself."""
        if progress.seconds_left is None:
            return None
        epochs = progress.epochs - progress.epoch + 1 - progress.step / max(progress.steps, 1)
        left = epochs * self._epoch(progress.stage)
        if progress.stage == "grow":
            left += self.config.train.epochs * self._epoch("train")
        if left > 0:
            self._work_s = progress.seconds_left / left
        return self._with_later(progress.seconds_left)

    def in_stage(self, elapsed_s: float) -> float | None:
        """So many seconds into the current stage; None where nothing is known about some stage."""
        expected = self._expected(self.names[0]) if self.names else None
        return None if expected is None else self._with_later(max(expected - elapsed_s, 0.0))

    def _with_later(self, seconds: float) -> float | None:
        later = [self._expected(name) for name in self.names[1:]]
        known = [each for each in later if each is not None]
        return seconds + sum(known) if len(known) == len(later) else None

    def _expected(self, name: str) -> float | None:
        train = self.config.train
        if self._work_s is not None and name == "train":
            return (train.grow_epochs * self._epoch("grow") + train.epochs * self._epoch("train")) * self._work_s
        if self._work_s is not None and name.startswith("heal"):
            return train.heal_epochs * self._epoch("heal") * self._work_s
        if self._work_s is None or name in self.took:
            return self.took.get(name)
        return EPOCHS[name.partition(" ")[0]] * self._epoch("train") * self._work_s

    def _epoch(self, stage: str) -> float:
        """The work of one epoch: the layers that it runs, and about four more for embeddings and softmax."""
        depths = self.config.model.depths
        return (min(depths) if stage == "grow" else max(depths)) + 4.0
