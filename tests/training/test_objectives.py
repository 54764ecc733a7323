import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fathom.training import objectives
from fathom.training.dataset import Sequences
from fathom.training.objectives import Candidates, CandidateSource, Objective, partition

N_ITEMS, WIDTH = 12, 4


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def train() -> Sequences:
    items = np.array([0, 1, 2, 3, 0, 4], dtype=np.int32)
    return Sequences(items, np.array([0, 4, 6], dtype=np.int64))


def test_cross_entropy_is_that_of_a_softmax_without_the_users_other_items(train: Sequences) -> None:
    users, vectors = unit(2, 3, WIDTH), unit(N_ITEMS, WIDTH, seed=1) / 0.1
    ahead = torch.tensor([[[1], [2], [3]], [[-1], [-1], [4]]])
    candidates = CandidateSource(train, N_ITEMS, samples=None).draw(torch.tensor([0, 1]), np.random.default_rng(0))
    objective = Objective(vectors, candidates, ahead)
    losses = []
    for row, position, target in [(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 2, 4)]:
        allowed = sorted({target} | set(range(N_ITEMS)) - set(train[row].tolist()))
        scores = users[row, position] @ vectors[allowed].T
        losses.append(F.cross_entropy(scores, torch.tensor(allowed.index(target))))
    torch.testing.assert_close(objective.cross_entropy(objective.read(users)), torch.stack(losses).mean())


def test_the_item_k_steps_ahead_counts_one_kth(train: Sequences) -> None:
    users, vectors = unit(1, 1, WIDTH), unit(N_ITEMS, WIDTH, seed=1) / 0.1
    candidates = CandidateSource(train, N_ITEMS, samples=None).draw(torch.tensor([1]), np.random.default_rng(0))

    def loss(*ahead: int) -> torch.Tensor:
        objective = Objective(vectors, candidates, torch.tensor([[ahead]]))
        return objective.cross_entropy(objective.read(users))

    torch.testing.assert_close(loss(7, 8, 9), (loss(7) + loss(8) / 2 + loss(9) / 3) / (1 + 1 / 2 + 1 / 3))
    torch.testing.assert_close(loss(7, -1, -1), loss(7))


def test_distillation_is_the_cross_entropy_under_the_teachers_distribution(train: Sequences) -> None:
    student, teacher, vectors = unit(1, 2, WIDTH), unit(1, 2, WIDTH, seed=2), unit(N_ITEMS, WIDTH, seed=1) / 0.1
    candidates = CandidateSource(train, N_ITEMS, samples=None).draw(torch.tensor([1]), np.random.default_rng(0))
    objective = Objective(vectors, candidates, torch.tensor([[[5], [6]]]))
    unseen = [item for item in range(N_ITEMS) if item not in (0, 4)]
    expected = F.cross_entropy((student @ vectors[unseen].T)[0], (teacher @ vectors[unseen].T)[0].softmax(-1))
    torch.testing.assert_close(objective.distillation(objective.read(student), objective.read(teacher)), expected)


def test_distillation_does_not_move_the_teacher(train: Sequences) -> None:
    student, teacher = unit(1, 2, WIDTH).requires_grad_(), unit(1, 2, WIDTH, seed=2).requires_grad_()
    candidates = CandidateSource(train, N_ITEMS, samples=None).draw(torch.tensor([0]), np.random.default_rng(0))
    objective = Objective(unit(N_ITEMS, WIDTH, seed=1), candidates, torch.tensor([[[5], [6]]]))
    objective.distillation(objective.read(student), objective.read(teacher)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_sampled_candidates_estimate_the_whole_partition_sum_without_bias(train: Sequences) -> None:
    users, vectors = unit(1, 1, WIDTH), unit(N_ITEMS, WIDTH, seed=1) / 0.5
    ahead = torch.tensor([[[1]]])
    rng = np.random.default_rng(0)
    full = CandidateSource(train, N_ITEMS, samples=None).draw(torch.tensor([0]), rng)
    source = CandidateSource(train, N_ITEMS, samples=20_000)
    drawn: Candidates = source.draw(torch.tensor([0]), rng)
    exact = Objective(vectors, full, ahead).read(users).log_total.exp()
    torch.testing.assert_close(Objective(vectors, drawn, ahead).read(users).log_total.exp(), exact, rtol=0.03, atol=0)


def test_samples_are_never_the_users_own_items(train: Sequences) -> None:
    drawn = CandidateSource(train, N_ITEMS, samples=500).draw(torch.tensor([0, 1]), np.random.default_rng(0))
    assert drawn.ids is not None
    own = torch.isin(drawn.ids, torch.from_numpy(train[0].astype(np.int64)))
    assert own.any()
    assert (drawn.weights[0][own] == 0).all()
    assert (drawn.weights[0][~own] > 0).all()


@pytest.mark.parametrize("at_once", [1, 3 * N_ITEMS, 1 << 20])
def test_the_partition_sum_taken_in_parts_is_the_plain_one_forward_and_backward(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(objectives.SCORES_AT_ONCE, "cpu", at_once)
    inputs = unit(5, 7, WIDTH).double(), unit(N_ITEMS, WIDTH, seed=1).double() / 0.1
    weights = torch.rand(5, N_ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    above = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def plain(users: torch.Tensor, vectors: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mass = (users @ vectors.T).exp() * weights[:, None]
        return mass.sum(-1).log(), (mass @ vectors / mass.sum(-1, keepdim=True)).detach()

    found = []
    for total in (partition, plain):
        users, vectors = (x.clone().requires_grad_() for x in inputs)
        log_total, expected = total(users, vectors, weights)
        log_total.backward(above)  # type: ignore[no-untyped-call]
        found.append([log_total, expected, users.grad, vectors.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
