"""Losses of the exits: cross entropy over the catalogue or a sample of it, and distillation from the deepest exit.

User and item vectors have unit norm, so a score is at most 1 / temperature and exp(score) needs no shift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.training.dataset import Sequences
from fathom.training.plugins import known, load

#: Scores held at a time while a partition sum is taken: 1 MB on a CPU, a part of a core's own cache; on a GPU 1 GB.
SCORES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 28}


@dataclass(frozen=True)
class Candidates:
    """What a target competes with in one batch.

    ``ids`` int64 (m,): item indices, or None for the whole catalogue. ``weights`` float (B, m): how many items of
    the catalogue each stands for; 0 for the user's own training items, which are no negatives: the answer is
    looked for among items that the user has not had.
    """

    ids: Tensor | None
    weights: Tensor

    def to(self, device: torch.device) -> "Candidates":
        """The same candidates on another device."""
        return Candidates(None if self.ids is None else self.ids.to(device), self.weights.to(device))


class CandidateSource:
    """Makes the Candidates of a batch: the whole catalogue where it is small, else shared samples.

    Samples follow popularity ** 0.75 and weigh 1 / (expected count), the logQ correction: the sampled partition
    sum is unbiased (Bengio and Senecal 2008).
    """

    def __init__(self, train: Sequences, n_items: int, *, samples: int | None) -> None:
        self.train = train
        self.n_items = n_items
        self.samples = samples
        counts = np.bincount(train.items, minlength=n_items).astype(np.float64)
        mass = (counts + 1) ** 0.75
        self.chance = mass / mass.sum()
        self.cumulative = np.cumsum(self.chance)[:-1]

    def draw(self, users: Tensor, rng: np.random.Generator) -> Candidates:
        """The candidates for these rows of the training sequences, int64 (B,)."""
        if self.samples is None:
            weights = np.ones((len(users), self.n_items), dtype=np.float32)
            for row, user in enumerate(users.tolist()):
                weights[row, self.train[user]] = 0
            return Candidates(None, torch.from_numpy(weights))
        ids = np.searchsorted(self.cumulative, rng.random(self.samples))
        each = (1 / (self.samples * self.chance[ids])).astype(np.float32)
        rows = [np.where(np.isin(ids, self.train[user]), np.float32(0), each) for user in users.tolist()]
        return Candidates(torch.from_numpy(ids), torch.from_numpy(np.stack(rows)))


@dataclass(frozen=True)
class ExitLoss:
    """One exit's view of a batch.

    ``users`` (B, L, d); ``log_total`` (B, L), the logarithm of the partition sum over the candidates; ``expected``
    (B, L, d), the mean candidate vector under the exit's own distribution, without a gradient.
    """

    users: Tensor
    log_total: Tensor
    expected: Tensor


class Objective:
    """The losses of one batch; ``vectors`` (n, d) are the item vectors divided by the temperature.

    ``ahead`` int64 (B, L, K) are the next items of each position, -1 where there is none: item k counts 1/k, times
    its weight where there are ``weights``, float (B, L, K), above 0 for some item.
    """

    def __init__(self, vectors: Tensor, candidates: Candidates, ahead: Tensor, weights: Tensor | None = None) -> None:
        self.vectors = vectors if candidates.ids is None else F.embedding(candidates.ids, vectors)
        self.weights = candidates.weights
        lag = torch.arange(1, ahead.shape[-1] + 1, device=ahead.device)
        share = (ahead >= 0) / lag
        if weights is not None:
            share = share * weights
        self.share = share / share.sum()
        self.targets = F.embedding(ahead.clamp(min=0), vectors)

    def read(self, users: Tensor) -> ExitLoss:
        """Compare user vectors (B, L, d) with all candidates."""
        log_total, expected = partition(users, self.vectors, self.weights)
        return ExitLoss(users, log_total, expected)

    def cross_entropy(self, exit_: ExitLoss) -> Tensor:
        """Mean of -log p(target) where the target competes with the candidates, a scalar."""
        scores = (self.targets * exit_.users[:, :, None]).sum(-1)
        return (F.softplus(exit_.log_total[..., None] - scores) * self.share).sum()

    def distillation(self, student: ExitLoss, teacher: ExitLoss) -> Tensor:
        """Mean cross entropy of the student's distribution over the candidates under the teacher's, a scalar.

        With scores linear in the user vector it is log(total) - user . E_teacher[item vector]. The teacher gets no
        gradient.
        """
        scores = (student.users * teacher.expected).sum(-1)
        return ((student.log_total - scores) * self.share.sum(-1)).sum()


GROUP = "fathom.objectives"
OBJECTIVES: dict[str, type[Objective]] = {"cross-entropy": Objective}


def objective_names() -> tuple[str, ...]:
    """The objectives there are: ours, and those of installed packages (entry points ``fathom.objectives``)."""
    return known(GROUP, OBJECTIVES)


def objective_class(name: str) -> type[Objective]:
    """The objective of that name; raises ConfigError for one that is not there or is no Objective."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    found: type[Objective] = load(GROUP, name, "objective", objective_names(), _checked)
    return found


def _checked(found: Any) -> type[Objective]:
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError("is no subclass of fathom.training.objectives.Objective")
    return found


def partition(users: Tensor, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of sum_j weight_j exp(user . vector_j), (B, L), and the mean vector under it, (B, L, d).

    For users (B, L, d), vectors (m, d) and weights (B, m). The mean vector carries no gradient.
    """
    log_total, expected = _Partition.apply(users, vectors, weights)  # type: ignore[no-untyped-call]
    return log_total, expected


class _Partition(torch.autograd.Function):
    """The partition sum without ever holding all scores: a few rows at a time, their scores while in the cache.

    Backward computes the scores again, as memory-efficient attention does (arXiv 2112.05682).
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, d), (m, d), (B, m) -> log total (B, L), expected vector (B, L, d)."""
        log_total, expected = users.new_empty(users.shape[:2]), torch.empty_like(users)
        for some in _slices(users, vectors):
            mass = _mass(users[some], vectors, weights[some[0]])
            total = mass.sum(-1)
            log_total[some] = total.log()
            expected[some] = (mass @ vectors) / total[..., None]
        ctx.save_for_backward(users, vectors, weights, log_total, expected)
        ctx.mark_non_differentiable(expected)
        return log_total, expected

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """d log total / d user is the expected vector; d / d vector is its probability times the user."""
        users, vectors, weights, log_total, expected = ctx.saved_tensors
        to_users = gradient[..., None] * expected
        if not ctx.needs_input_grad[1]:
            return to_users, None, None
        to_vectors = torch.zeros_like(vectors)
        scale = gradient * (-log_total).exp()
        for some in _slices(users, vectors):
            mass = _mass(users[some], vectors, weights[some[0]]).flatten(0, 1)
            to_vectors.addmm_(mass.T, (users[some] * scale[some][..., None]).flatten(0, 1))
        return to_users, to_vectors, None


def _mass(users: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """Weight times exp(score), (b, L, m)."""
    return (users @ vectors.T).exp_().mul_(weights[:, None])


def _slices(users: Tensor, vectors: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of the batch, or positions of one row, whose scores fit into the limit of their device."""
    at_once = max(1, SCORES_AT_ONCE[users.device.type] // len(vectors))
    positions = min(at_once, users.shape[1])
    rows = max(1, at_once // positions)
    for start in range(0, len(users), rows):
        for first in range(0, users.shape[1], positions):
            yield slice(start, start + rows), slice(first, first + positions)
