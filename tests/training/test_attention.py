import pytest
import torch
import torch.nn.functional as F

from fathom.training import attention
from fathom.training.attention import silu_attention
from fathom.training.blocks import dropout

BATCH, LENGTH, HEADS, WIDTH = 5, 150, 2, 16


def plain(projected: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, *qkv = F.silu(projected).chunk(4, dim=-1)
    q, k, v = (x.view(BATCH, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2) for x in qkv)
    return gate, (F.silu(q @ k.mT + bias) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("per_user", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 14, 1 << 26])
def test_equals_the_plain_expression_forward_and_backward(
    per_user: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.SCORES_AT_ONCE, "cpu", at_once)
    random = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, LENGTH, LENGTH) if per_user else (HEADS, LENGTH, LENGTH)
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    inputs = (
        torch.randn(BATCH, LENGTH, 4 * WIDTH, dtype=torch.float64, generator=random),
        torch.randn(shape, dtype=torch.float64, generator=random).masked_fill(later, -1e4),
    )
    above = tuple(torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=random) for _ in range(2))
    found = []
    for attend in (silu_attention, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = attend(*leaves)
        torch.autograd.backward(outputs, above)
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for fused, expected in zip(*found, strict=True):
        torch.testing.assert_close(fused, expected)


def test_dropout_keeps_the_mean_and_drops_the_share_independently() -> None:
    torch.manual_seed(0)
    kept = dropout(torch.ones(1000, 1001), 0.3, training=True)
    assert kept.mean().item() == pytest.approx(1, abs=0.003)
    assert (kept == 0).float().mean().item() == pytest.approx(77 / 256, abs=0.002)
    centred = (kept == 0).float() - 77 / 256
    assert abs((centred[:, 1:] * centred[:, :-1]).mean().item()) < 1e-3


def test_dropout_does_nothing_outside_training_or_without_a_share() -> None:
    x = torch.ones(3, 3)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x
