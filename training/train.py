"""Training: grow the shallowest exit, stack the other layers on it as identities, then train all exits together.

The first stage is cheap and gives the deep model a start that it does not find from scratch on a CPU; its learning rate
falls to where the second stage goes on. The second trains the deepest exit and one random shallower exit per step.

With ``train.exits=stacked`` a stage for each deeper exit takes the second stage's place; see ``stacking``.
"""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.artefacts import CHECKPOINT, TRAINING_STATE, check_output, training_state
from fathom.errors import ConfigError, DataError
from fathom.files import remove_folder, sha256_bytes
from fathom.training.batches import Batch, epoch_batches, history_batches, make_batch
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.dataset import Dataset
from fathom.training.metrics import Floats
from fathom.training.model import ElasticModel
from fathom.training.objectives import CandidateSource, objective_class
from fathom.training.presets import TrainConfig
from fathom.training.splits import Cases, split
from fathom.training.stacking import hand_on, in_order, is_gain, train_only
from fathom.training.state import RunState, TrainState, copy_weights, load_state
from fathom.training.text import initialise_embeddings, title_vectors
from fathom.training.tuning import Tune, restore, restrict

#: The learning rate ends a stage at this share of its peak.
FINAL_RATE = 0.02
#: Scores of a batch of a validation: 512 MB, or more where one history may take them.
SCORES = 1 << 27


@dataclass(frozen=True)
class TrainProgress:
    """Where training stands: after ``step`` of ``steps`` batches of ``epoch`` (from 1) of ``epochs``.

    ``loss`` is the epoch's mean so far; ``ndcg`` the last validation NDCG@10 per depth, empty before the first;
    ``seconds_left`` an estimate for all remaining stages, None before there is one.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    ndcg: dict[int, float]
    seconds_left: float | None


@dataclass(frozen=True)
class TrainingStage:
    """One schedule of warm-up and cosine over some exits.

    ``below``: the depth on which the only exit is stacked, and which it must beat on validation; None: all is trained.
    """

    name: str
    epochs: int
    learning_rate: float
    depths: tuple[int, ...]
    layer_drop: float
    last_rate: float = FINAL_RATE
    below: int | None = None


def fit(
    config: TrainConfig,
    dataset: Dataset,
    *,
    out: Path,
    model: ElasticModel | None = None,
    progress: Callable[[TrainProgress], None] = lambda _: None,
) -> Checkpoint:
    """Train and write a checkpoint; with ``model``, heal that model instead of starting a new one.

    An interrupted run goes on from its last whole epoch when called again with the same arguments, and ends in the
    same bits as an uninterrupted one. Raises ConfigError for settings that cannot work, DataError for data that
    leaves nothing to train on, OutputError for an ``out`` that may not be replaced.
    """
    check_output(out, CHECKPOINT)
    device = pick_device(config.train.device)
    keep_freed_memory()
    with _reproducible(device):
        checkpoint = Trainer(config, dataset, device, model, training_state(out), progress).run()
    saved = checkpoint.save(out)
    remove_folder(training_state(out), TRAINING_STATE)
    return saved


def pick_device(name: str) -> torch.device:
    """The device of that name; auto takes CUDA where there is one. Raises ConfigError for a missing one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: this machine has no CUDA device; use train.device=cpu")
    return torch.device(name)


def grow(model: ElasticModel) -> None:
    """Start all layers beyond the shallowest exit as identities that hold copies of its layers, in place."""
    shallow = model.depths[0]
    base = model.config.paths[shallow]
    rest = [layer for layer in range(model.config.layers) if layer not in base]
    for turn, layer in enumerate(rest):
        block = model.block(layer)
        block.load_state_dict(model.block(base[turn % len(base)]).state_dict())
        block.become_identity()
    for depth in model.depths[1:]:
        model.exits[str(depth)].load_state_dict(model.exits[str(shallow)].state_dict())


def ndcg_at_10(model: ElasticModel, cases: Cases, depths: tuple[int, ...], tokens: int) -> dict[int, Floats]:
    """NDCG@10 per depth, float64 (cases,): full ranking without the history's items, ties count against the target."""
    device = model.embedding.weight.device
    gain = {depth: np.zeros(len(cases)) for depth in depths}
    model.eval()
    with torch.no_grad():
        vectors = model.item_vectors()
        most = min(tokens, max(model.config.max_history, SCORES // len(vectors)))  # rows have an item or more
        for rows, items, times in history_batches(cases.histories, max_history=model.config.max_history, tokens=most):
            targets = torch.from_numpy(cases.targets[rows].astype(np.int64)).to(device)[:, None]
            seen = [torch.from_numpy(cases.histories[row].astype(np.int64)) for row in rows]
            hidden = model.hidden(items.to(device), None if times is None else times.to(device), depths)
            for depth, state in hidden.items():
                scores = model.read_exit(depth, state[:, -1]) @ vectors.T
                for row, known in enumerate(seen):
                    scores[row, known] = -math.inf
                rank = (scores >= scores.gather(1, targets)).sum(1).double() - 1
                gain[depth][rows] = torch.where(rank < 10, 1 / torch.log2(rank + 2), 0).cpu().numpy()
    model.train()
    return gain


class Trainer:
    """One training run; ``fit`` wraps it with what a user needs."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        start: ElasticModel | None,
        state_path: Path,
        progress: Callable[[TrainProgress], None],
    ) -> None:
        self.config = config
        self.settings = config.train
        self.dataset = dataset
        self.split = split(dataset, config.train.split)
        self.validation = _some(self.split.validation, self.settings.validation_users)
        if not len(self.validation) or self.split.train.lengths.max(initial=0) < 2:
            raise DataError("nothing to train on: no user has three events; lower the filters of `fathom data prepare`")
        self.objective = objective_class(self.settings.objective)
        self.device = device
        self.state_path = state_path
        self.progress = progress
        torch.manual_seed(self.settings.seed)
        if start is None:
            self.model = ElasticModel(config.model.for_items(dataset.n_items))
            if self.settings.item_text:
                encoder = None if self.settings.item_text == "minilm" else Path(self.settings.item_text)
                initialise_embeddings(self.model, title_vectors(dataset.titles, encoder))
        else:
            self.model = ElasticModel.of(start.config, start.state_dict())
        if self.model.config.items != dataset.n_items:
            raise ConfigError(f"the model knows {self.model.config.items} items, the dataset {dataset.n_items}")
        self.tune: Tune = "everything" if start is None else self.settings.heal_tune
        restrict(self.model, self.tune)
        self.stages = self._stages(heal=start is not None)
        self.fingerprint = _fingerprint(config, dataset, self.model)
        samples = None if dataset.n_items < self.settings.full_softmax_items else self.settings.negatives
        self.candidates = CandidateSource(self.split.train, dataset.n_items, samples=samples)
        self.model.to(device).train()
        self.ndcg: dict[int, float] = {}
        self.worked = 0.0
        self.started_s = time.monotonic()

    def _stages(self, *, heal: bool) -> tuple[TrainingStage, ...]:
        s, depths = self.settings, self.model.depths
        if heal:
            if s.exits == "stacked" and in_order(self.model) and self.tune != "qlora":  # which rounds all weights
                return ()
            return (TrainingStage("heal", s.heal_epochs, s.heal_learning_rate, depths, 0.0),)
        trained = depths if s.exit_weight else depths[-1:]
        together = TrainingStage("train", s.epochs, s.learning_rate, trained, s.layer_drop)
        if s.grow_epochs == 0 or len(depths) == 1:
            return (together,)
        # The next stage goes on from where this one ends.
        last = min(1.0, s.learning_rate / s.grow_learning_rate)
        growing = TrainingStage("grow", s.grow_epochs, s.grow_learning_rate, depths[:1], 0.0, last)
        if s.exits == "together":
            return (growing, together)
        one = replace(together, layer_drop=0.0)
        deeper = (replace(one, name=f"exit {d}", depths=(d,), below=below) for below, d in pairwise(depths))
        return (replace(growing, last_rate=FINAL_RATE), *deeper)

    def run(self) -> Checkpoint:
        """Train through all stages; returns the unsaved checkpoint with each exit at the best epoch."""
        state = load_state(self.state_path, self.fingerprint)
        run = RunState() if state is None else state.run
        if state is not None:
            self.model.load_state_dict(state.weights)
        while run.stage < len(self.stages):
            stage = self.stages[run.stage]
            if stage.below is not None:
                train_only(self.model, stage.depths[0], stage.below)
                run.best = run.best or copy_weights(self.model.state_dict())
            optimizer = self.optimizer(stage)
            if state is not None and state.optimizer:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state.optimizer})
            state = None
            self._run_stage(stage, optimizer, run)
            self.model.load_state_dict(run.best)
            if stage.name == "grow":
                grow(self.model)
            elif stage.below is not None:
                hand_on(self.model, stage.depths[0])
            run.stage, run.epoch, run.stale, run.best_score, run.best = run.stage + 1, 0, 0, -1.0, {}
        self.model = restore(self.model, self.tune)
        return self._checkpoint(run)

    def _run_stage(self, stage: TrainingStage, optimizer: torch.optim.Optimizer, run: RunState) -> None:
        while run.epoch < stage.epochs and run.stale < self.settings.patience:
            started = time.monotonic()
            loss = self._epoch(stage, optimizer, run)
            run.epoch += 1
            if run.epoch % self.settings.evaluate_every == 0 or run.epoch == stage.epochs:
                self._validate(stage, run, loss)
            run.seconds += time.monotonic() - started
            slots = optimizer.state_dict()["state"]
            TrainState(self.fingerprint, run, self.model.state_dict(), slots).save(self.state_path)

    def _epoch(self, stage: TrainingStage, optimizer: torch.optim.Optimizer, run: RunState) -> float:
        """One pass over the training windows; returns the mean loss."""
        rng = np.random.default_rng([self.settings.seed, run.stage, run.epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        batches = epoch_batches(
            self.split.train, window=self.settings.window, tokens=self.settings.batch_tokens, rng=rng
        )
        calm = run.epoch >= stage.epochs - self.settings.calm_epochs
        total = 0.0
        for step, rows in enumerate(batches):
            done = (run.epoch + step / len(batches)) / stage.epochs
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate(done, self.settings.warmup, stage.last_rate)
            batch = make_batch(self.split.train, rows, self.settings.targets_ahead).to(self.device)
            total += self.step(stage, optimizer, batch, rng, 0.0 if calm else stage.layer_drop)
            if not math.isfinite(total):
                raise ConfigError(
                    f"training diverged in epoch {run.epoch + 1} of {stage.name}; lower the learning rate"
                )
            self.worked += self._work(stage)
            self._report(stage, run, step + 1, len(batches), total / (step + 1))
        return total / len(batches)

    def step(
        self,
        stage: TrainingStage,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        rng: np.random.Generator,
        layer_drop: float,
    ) -> float:
        """One step on one batch; returns its loss."""
        loss = self._loss(stage, batch, rng, layer_drop)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        optimizer.step()
        return loss.item()

    def _loss(self, stage: TrainingStage, batch: Batch, rng: np.random.Generator, layer_drop: float) -> Tensor:
        """Deepest exit, plus some random shallower exits; these can imitate the deepest (``distillation``)."""
        *shallower, deepest = stage.depths
        students = rng.permutation(shallower)[: self.settings.exits_per_step].tolist()
        first = self.model.config.paths[self.model.depths[0]]
        resting = rng.random(self.model.config.layers) < layer_drop
        skip = {layer for layer in np.flatnonzero(resting).tolist() if layer not in first}
        times = batch.timestamps
        if times is not None and rng.random() < self.settings.forget_times:
            times = torch.zeros_like(times)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            users = self.model(batch.items, times, (*students, deepest), skip)
        vectors = self.model.item_vectors() / self.model.config.temperature
        candidates = self.candidates.draw(batch.users, rng).to(self.device)
        objective = self.objective(vectors, candidates, batch.ahead, batch.weights)
        teacher = objective.read(users[deepest].float())
        loss = objective.cross_entropy(teacher)
        share, weight = self.settings.distillation, self.settings.exit_weight
        for student in students:
            exit_ = objective.read(users[student].float())
            own = (1 - share) * objective.cross_entropy(exit_) + share * objective.distillation(exit_, teacher)
            loss = loss + weight * own
        return loss / (1 + weight * len(students))

    def _validate(self, stage: TrainingStage, run: RunState, loss: float) -> None:
        read = stage.depths if stage.below is None else (stage.below, *stage.depths)
        gains = ndcg_at_10(self.model, self.validation, read, 4 * self.settings.batch_tokens)
        self.ndcg = {depth: float(values.mean()) for depth, values in gains.items()}
        mean = sum(self.ndcg[depth] for depth in stage.depths) / len(stage.depths)
        better = stage.below is None or is_gain(gains[stage.depths[0]], gains[stage.below])
        run.stale += 1
        if better and mean > run.best_score:
            run.stale, run.best_score, run.best = 0, mean, copy_weights(self.model.state_dict())
        ndcg = {str(depth): value for depth, value in self.ndcg.items()}
        run.history.append({"stage": stage.name, "epoch": run.epoch, "loss": loss, "validation_ndcg@10": ndcg})

    def optimizer(self, stage: TrainingStage) -> torch.optim.Optimizer:
        """AdamW for one stage; norms and biases are not decayed."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            groups, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=self.settings.weight_decay, fused=True
        )

    @property
    def _bf16(self) -> bool:
        return self.settings.precision == "bf16" or (self.settings.precision == "auto" and self.device.type == "cuda")

    def _work(self, stage: TrainingStage) -> float:
        """Rough cost of a step of this stage: its layers, plus four for embeddings and softmax."""
        return max(stage.depths) + 4.0

    def _report(self, stage: TrainingStage, run: RunState, step: int, steps: int, loss: float) -> None:
        epochs_here = stage.epochs - run.epoch - step / steps
        left = epochs_here * self._work(stage)
        left += sum(later.epochs * self._work(later) for later in self.stages[run.stage + 1 :])
        seconds = left * steps * (time.monotonic() - self.started_s) / self.worked
        self.progress(
            TrainProgress(stage.name, run.epoch + 1, stage.epochs, step, steps, loss, dict(self.ndcg), seconds)
        )

    def _checkpoint(self, run: RunState) -> Checkpoint:
        config = CheckpointConfig(
            model=self.model.config, train=self.config, dataset=self.dataset.sha256, split=self.split.name
        )
        return Checkpoint(
            model=self.model,
            config=config,
            item_ids=self.dataset.item_ids,
            titles=self.dataset.titles,
            categories=self.dataset.categories,
            metrics={"training": run.history, "seconds": round(run.seconds, 3)},
        )


def rate(done: float, warmup: float, last: float = FINAL_RATE) -> float:
    """Share of the peak learning rate after ``done`` (0..1) of a stage: linear warm-up, then half a cosine."""
    if done < warmup:
        return max(done / warmup, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    return last + (1 - last) * cosine


def _some(cases: Cases, at_most: int) -> Cases:
    """At most so many cases, evenly spread, so that a large dataset is validated in bounded time."""
    if len(cases) <= at_most:
        return cases
    rows = np.linspace(0, len(cases) - 1, at_most).astype(np.int64)
    return Cases(cases.histories.select(rows), cases.targets[rows], cases.users[rows])


def _fingerprint(config: TrainConfig, dataset: Dataset, start: ElasticModel) -> str:
    parts = [config.model_dump_json(), dataset.sha256, start.config.model_dump_json()]
    parts += [sha256_bytes(value.detach().cpu().numpy().tobytes()) for value in start.state_dict().values()]
    return sha256_bytes("\n".join(parts).encode())


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: by default every large tensor is fetched from the kernel anew, page by page.

    Training is 1.5 to 1.8 times as fast for it (docs/log.md). Other systems have no such call and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels and our own random stream, for the duration; the caller's are as before afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = filled
