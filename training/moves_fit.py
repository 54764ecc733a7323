"""Learns how user vectors of a trained model move by what a request tells beside its history."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fathom.training.batches import Batch, epoch_batches, make_batch
from fathom.training.counting import CUTOFF
from fathom.training.dataset import Progress, Sequences
from fathom.training.metrics import Floats, Interval, ndcg, paired_difference, ranks
from fathom.training.model import ElasticModel
from fathom.training.moves import move
from fathom.training.objectives import CandidateSource, Objective
from fathom.training.presets import TrainSettings
from fathom.training.scorer import exit_users
from fathom.training.splits import Cases

#: Most passes over the training events, most steps, and the highest learning rate.
EPOCHS, STEPS, RATE = 4, 300, 3e-3
#: What was learned from fewer events than this changes nothing; one counts in each of its passes.
LEAST_EVENTS = 100
#: Of what was learned: what is tried.
WEIGHTS = (0.0, 0.5, 1.0)
#: With fewer cases nothing is for sure.
LEAST_CASES = 30


class Signal(Protocol):
    """What requests tell beside their histories: rows of a table of ``size`` changes, and what each counts.

    ``what``: its name, for messages.
    """

    what: str
    size: int

    def of_positions(self, train: Sequences, batch: Batch, rows: NDArray[np.int64], rng: np.random.Generator) -> Any:
        """What each position's next event tells of the request that it answers, of windows (B, 3): (B, L, ...)."""

    def of_requests(self, histories: Sequences) -> Any:
        """What the requests of n histories tell: (n, ...)."""

    def counts(self, told: Any) -> Floats:
        """How often each change has a part in what was told, (size,)."""

    def change(self, told: Any, changes: Any) -> Any:
        """What was told (..., ...) as a change (..., 2 width), of the table (size, 2 width); arrays or tensors."""


class Moves(NamedTuple):
    """What a signal changes, float32 (size, 2, width), and what that adds to NDCG@10 on validation items."""

    signal: Signal
    changes: NDArray[np.float32]
    gain: Interval

    def moved(self, users: NDArray[np.float32], histories: Sequences) -> NDArray[np.float32]:
        """User vectors (n, width) of these n histories at their requests."""
        return _moved(self.signal, users, self.signal.of_requests(histories), self.changes)


def fit_moves(
    model: ElasticModel,
    settings: TrainSettings,
    train: Sequences,
    cases: Cases,
    signal: Signal,
    *,
    before: Moves | None = None,
    progress: Progress = lambda _: None,
) -> Moves | None:
    """Learn from the training events, each asked for as it came, and weigh at each depth by validation cases.

    One weight of what was learned is chosen for all depths. None where no weight is measurably better than 0.
    ``before``: vectors have moved so already. The model is put into evaluation mode; random streams stay as they were.
    """
    changes = _learned(model.eval(), settings, train, signal, before, progress)
    progress(f"weighing {signal.what}")
    found = _measured(model, changes, cases, signal, before)
    best = _best(found)
    if not best:
        return None
    return Moves(signal, changes * np.float32(WEIGHTS[best]), paired_difference(found.gains[best], found.gains[0]))


class _Changes(nn.Module):
    def __init__(self, signal: Signal, table: Tensor) -> None:
        super().__init__()
        self._signal = signal
        self.table = nn.Parameter(table)

    def forward(self, users: Tensor, told: Tensor) -> Tensor:
        """User vectors (..., width) and what was told (..., ...) to moved vectors."""
        scale, shift = self._signal.change(told, self.table).chunk(2, dim=-1)
        return F.normalize(users * (1 + scale) + shift, dim=-1)


def _learned(
    model: ElasticModel,
    settings: TrainSettings,
    train: Sequences,
    signal: Signal,
    before: Moves | None,
    progress: Progress,
) -> NDArray[np.float32]:
    """The changes, float32 (size, 2, width): cross entropy of the items ahead, at a depth drawn for every step."""
    rng, device = np.random.default_rng([settings.seed, signal.size]), model.embedding.weight.device
    made = _Changes(signal, torch.zeros(signal.size, 2 * model.config.width)).to(device)
    optimizer = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=settings.weight_decay)
    items = model.config.items
    source = CandidateSource(train, items, samples=None if items < settings.full_softmax_items else settings.negatives)
    with torch.no_grad():
        vectors = model.item_vectors() / model.config.temperature
    batches: list[NDArray[np.int64]] = []
    for _ in range(EPOCHS):
        batches += epoch_batches(train, window=settings.window, tokens=settings.batch_tokens, rng=rng)
    batches, counts = batches[:STEPS], np.zeros(signal.size)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        batch = make_batch(train, rows, settings.targets_ahead)
        told = signal.of_positions(train, batch, rows, rng)
        counts += signal.counts(told)
        depth = int(rng.choice(model.depths))
        on_device = batch.to(device)
        with torch.no_grad():
            users = model.read_exit(depth, model.hidden(on_device.items, on_device.timestamps, (depth,))[depth])
            if before is not None:
                known = before.signal.of_positions(train, batch, rows, rng)
                moves = _Changes(before.signal, torch.from_numpy(before.changes).flatten(1)).to(device)
                users = moves(users, torch.from_numpy(known).to(device))
        objective = Objective(vectors, source.draw(on_device.users, rng).to(device), on_device.ahead, on_device.weights)
        loss = objective.cross_entropy(objective.read(made(users, torch.from_numpy(told).to(device))))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(f"learning what {signal.what} tells: {step + 1:,} of {len(batches):,} steps")
    changes = made.table.detach().cpu().numpy().reshape(signal.size, 2, -1)
    changes[counts < LEAST_EVENTS] = 0
    return changes


def _measured(
    model: ElasticModel, changes: NDArray[np.float32], cases: Cases, signal: Signal, before: Moves | None
) -> "_Quality":
    """What every weight of the changes gives on some cases, in one pass over the network."""
    found = _Quality(*(np.zeros((len(WEIGHTS), len(cases))) for _ in range(3)))
    network = exit_users(model, model.embedding.weight.device)
    vectors = model.item_vectors().detach().float().cpu().numpy()
    own = signal.of_requests(cases.histories)
    others = np.random.default_rng(0).permutation(own)
    part, temperature = 1 / len(model.depths), model.config.temperature
    for rows in cases.chunks(len(vectors)):
        chunk = cases.select(rows)
        for computed in network(chunk.histories).values():
            users = computed if before is None else before.moved(computed, chunk.histories)
            for place, weight in enumerate(WEIGHTS):
                change = changes * np.float32(weight)
                scores = _scores(_moved(signal, users, own[rows], change), vectors, chunk)
                found.gains[place, rows] += part * ndcg(ranks(scores, chunk.targets), CUTOFF)
                found.losses[place, rows] += part * _cross_entropy(scores / temperature, chunk.targets)
                scores = _scores(_moved(signal, users, others[rows], change), vectors, chunk)
                found.with_others[place, rows] += part * _cross_entropy(scores / temperature, chunk.targets)
    return found


class _Quality(NamedTuple):
    """Of each weight and case, float64 (weights, cases), means over depths: NDCG@10, cross entropy of the target.

    ``with_others``: cross entropy where every case tells what another one told, drawn at random.
    """

    gains: Floats
    losses: Floats
    with_others: Floats


def _moved(signal: Signal, users: NDArray[np.float32], told: Any, changes: NDArray[np.float32]) -> NDArray[np.float32]:
    return move(users, signal.change(told, changes.reshape(len(changes), -1)))


def _scores(users: NDArray[np.float32], vectors: NDArray[np.float32], cases: Cases) -> NDArray[np.float32]:
    scores = users @ vectors.T
    scores[cases.histories.owners, cases.histories.items] = -np.inf
    return scores


def _cross_entropy(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> Floats:
    """-log p of each target among what is not left out, float64 (cases,); 0 for one that is."""
    target = logits[np.arange(len(targets)), targets].astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # where everything is left out
        total = np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64)) + largest[:, 0]
    return np.where(np.isfinite(target), total - target, 0.0)


def _best(found: _Quality) -> int:
    """The place of the weight with the best NDCG@10; 0 where no weight is measurably better than none.

    That takes NDCG@10 that is better by more than a standard error, and, as that alone is often chance, cross entropy
    that is lower by more than two: both against no change and against what others told, which leaves whatever a change
    does besides. Cross entropy shows a small effect long before NDCG does.
    """
    if found.losses.shape[1] < LEAST_CASES:
        return 0
    sure = _above(found.losses[:1] - found.losses, 2) & _above(found.with_others - found.losses, 2)
    sure &= _above(found.gains - found.gains[:1], 1)
    sure[0] = True
    return int(np.where(sure, found.gains.mean(axis=1), -np.inf).argmax())


def _above(values: Floats, errors: float) -> NDArray[np.bool_]:
    """Whether the means over cases, (weights, cases), are above 0 by more than so many standard errors: (weights,)."""
    found: NDArray[np.bool_] = values.mean(axis=1) > errors * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    return found
