"""Learns how the time of a request moves the user vectors of a trained model."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fathom.training.batches import Batch, epoch_batches, make_batch
from fathom.training.counting import CUTOFF, tuning_cases
from fathom.training.dataset import Progress, Sequences
from fathom.training.metrics import Floats, ndcg, paired_difference, ranks
from fathom.training.model import ElasticModel
from fathom.training.objectives import CandidateSource, Objective
from fathom.training.presets import TrainSettings
from fathom.training.request_time import BUCKETS, UNKNOWN, RequestTime, gap_shares, gaps_of, moved
from fathom.training.scorer import exit_users
from fathom.training.splits import Cases, Split

#: Most passes over the training events, most steps, and the highest learning rate.
EPOCHS, STEPS, RATE = 4, 300, 3e-3
#: A gap that was learned from fewer events than this changes nothing; one counts in each of its passes.
LEAST_EVENTS = 100
#: Of what was learned: what is tried.
WEIGHTS = (0.0, 0.5, 1.0)
#: With fewer cases nothing is for sure.
LEAST_CASES = 30


def fit_request_time(
    model: ElasticModel, settings: TrainSettings, cut: Split, *, progress: Progress = lambda _: None
) -> RequestTime | None:
    """Learn from the training events, each asked for when it came, and weigh at each depth by the validation items.

    One weight of what was learned is chosen for all depths. None without times, without validation cases, where that is
    off (``settings.request_time``), and where no weight is measurably better than 0. The model is put into evaluation
    mode, and random streams are left as they were.
    """
    cases = tuning_cases(cut)
    if settings.request_time == "off" or cut.train.timestamps is None or not len(cases):
        return None
    changes = _learned(model.eval(), settings, cut.train, progress)
    progress("weighing the time of a request")
    found = _measured(model, changes, cases)
    best = _best(found)
    if not best:
        return None
    gain = paired_difference(found.gains[best], found.gains[0])
    return RequestTime(changes * np.float32(WEIGHTS[best]), gain)


class _Changes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(BUCKETS, 2 * width))

    def forward(self, users: Tensor, shares: Tensor) -> Tensor:
        """User vectors (..., width) and shares of the buckets (..., BUCKETS) to moved vectors."""
        scale, shift = (shares @ self.table).chunk(2, dim=-1)
        return F.normalize(users * (1 + scale) + shift, dim=-1)


def _learned(model: ElasticModel, settings: TrainSettings, train: Sequences, progress: Progress) -> NDArray[np.float32]:
    """The changes, float32 (BUCKETS, 2, width): cross entropy of the items ahead, at a depth drawn for every step."""
    rng, device = np.random.default_rng([settings.seed, BUCKETS]), model.embedding.weight.device
    made = _Changes(model.config.width).to(device)
    optimizer = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=settings.weight_decay)
    items = model.config.items
    source = CandidateSource(train, items, samples=None if items < settings.full_softmax_items else settings.negatives)
    with torch.no_grad():
        vectors = model.item_vectors() / model.config.temperature
    batches: list[NDArray[np.int64]] = []
    for _ in range(EPOCHS):
        batches += epoch_batches(train, window=settings.window, tokens=settings.batch_tokens, rng=rng)
    batches, counts = batches[:STEPS], np.zeros(BUCKETS)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        batch = make_batch(train, rows, settings.targets_ahead)
        shares = gap_shares(_gaps(train, batch, rows))
        counts += shares.sum((0, 1))
        depth = int(rng.choice(model.depths))
        batch = batch.to(device)
        with torch.no_grad():
            users = model.read_exit(depth, model.hidden(batch.items, batch.timestamps, (depth,))[depth])
        objective = Objective(vectors, source.draw(batch.users, rng).to(device), batch.ahead, batch.weights)
        loss = objective.cross_entropy(objective.read(made(users, torch.from_numpy(shares).to(device))))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(f"learning what the time of a request tells: {step + 1:,} of {len(batches):,} steps")
    changes = made.table.detach().cpu().numpy().reshape(BUCKETS, 2, -1)
    changes[counts < LEAST_EVENTS] = 0
    return changes


def _gaps(train: Sequences, batch: Batch, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seconds from every event of a batch's windows (B, 3) to the next one, int64 (B, L); UNKNOWN for padding."""
    assert train.timestamps is not None
    assert batch.timestamps is not None
    times = batch.timestamps.numpy()
    after = train.timestamps[train.offsets[rows[:, 0]] + rows[:, 2]]
    following = np.concatenate((times[:, 1:], after[:, None]), axis=1)
    known = (batch.items.numpy() > 0) & (times > 0) & (following > 0)
    return np.where(known, np.maximum(following - times, 0), UNKNOWN)


def _measured(model: ElasticModel, changes: NDArray[np.float32], cases: Cases) -> "_Quality":
    """What every weight of the changes gives on some cases, in one pass over the network."""
    found = _Quality(*(np.zeros((len(WEIGHTS), len(cases))) for _ in range(3)))
    network = exit_users(model, model.embedding.weight.device)
    vectors = model.item_vectors().detach().float().cpu().numpy()
    gaps = gaps_of(cases.histories)
    others = np.random.default_rng(0).permutation(gaps)
    part, temperature = 1 / len(model.depths), model.config.temperature
    for rows in cases.chunks(len(vectors)):
        chunk = cases.select(rows)
        own, foreign = gap_shares(gaps[rows]), gap_shares(others[rows])
        for users in network(chunk.histories).values():
            for place, weight in enumerate(WEIGHTS):
                change = changes * np.float32(weight)
                scores = _scores(moved(users, own, change), vectors, chunk)
                found.gains[place, rows] += part * ndcg(ranks(scores, chunk.targets), CUTOFF)
                found.losses[place, rows] += part * _cross_entropy(scores / temperature, chunk.targets)
                scores = _scores(moved(users, foreign, change), vectors, chunk)
                found.with_others[place, rows] += part * _cross_entropy(scores / temperature, chunk.targets)
    return found


class _Quality(NamedTuple):
    """Of each weight and case, float64 (weights, cases), means over depths: NDCG@10, cross entropy of the target.

    ``with_others``: cross entropy where every case has the gap of another one, drawn at random.
    """

    gains: Floats
    losses: Floats
    with_others: Floats


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
    that is lower by more than two: both against no change and against the gaps of others, which leave whatever a change
    does besides. Cross entropy tells the small effect of a gap long before NDCG does.
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
