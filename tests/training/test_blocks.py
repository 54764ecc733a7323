import pytest
import torch

from fathom.training.blocks import (
    EXACT_DISTANCES,
    POSITION_BUCKETS,
    Block,
    TimeBias,
    make_block,
    position_buckets,
)
from fathom.training.model import ElasticModel, ModelConfig

KINDS: tuple[str, ...] = ("hstu", "gated")
DAY_S = 86_400


def some_model(kind: str, *, time_bias: bool) -> ElasticModel:
    torch.manual_seed(0)
    config = ModelConfig(
        block=kind, items=30, layers=2, paths={1: (0,), 2: (0, 1)}, width=16, max_history=12, time_bias=time_bias
    )
    model = ElasticModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_history(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(1, 31, (batch, length), generator=generator)
    times = 10**9 + torch.randint(0, 90 * DAY_S, (batch, length), generator=generator).sort(1).values
    return items, times


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time_bias", [False, True])
class TestEveryBlock:
    def test_padding_on_the_left_changes_nothing(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        items, times = some_history(3, 5)
        padding = torch.zeros(3, 7, dtype=torch.int64)
        alone = model(items, times)[2]
        padded = model(torch.cat([padding, items], 1), torch.cat([padding, times], 1))[2][:, 7:]
        torch.testing.assert_close(padded, alone, atol=1e-6, rtol=0)

    def test_the_last_position_alone_gives_the_same_as_all_positions(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        items, times = some_history(2, 6)
        context, hidden = model.context(items, times), model.embed(items)
        whole = model.run_layer(0, hidden, context)
        last = model.run_layer(0, hidden, context, last_only=True)
        assert last.shape == (2, 1, 16)
        torch.testing.assert_close(last, whole[:, -1:], atol=1e-6, rtol=0)

    def test_a_later_item_does_not_reach_back(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        items, times = some_history(1, 6)
        changed = items.clone()
        changed[0, -1] = items[0, -1] % 30 + 1
        before, after = model(items, times)[2], model(changed, times)[2]
        torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=1e-6, rtol=0)
        assert not torch.allclose(before[:, -1], after[:, -1])

    def test_a_fresh_identity_passes_its_input_on(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        model.block(1).become_identity()
        items, times = some_history(2, 4)
        context, hidden = model.context(items, times), model.embed(items)
        assert torch.equal(model.run_layer(1, hidden, context), hidden)

    def test_a_history_longer_than_max_history_still_has_positions(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        items, times = some_history(1, 40)
        assert torch.isfinite(model.user_vectors(items, times)).all()

    def test_rows_of_padding_alone_stay_finite(self, kind: str, time_bias: bool) -> None:
        model = some_model(kind, time_bias=time_bias)
        nothing = torch.zeros(1, 3, dtype=torch.int64)
        assert torch.isfinite(model(nothing, nothing)[2]).all()


def test_padding_stays_zero_through_hstu_layers_whatever_the_embedding_of_its_id_is() -> None:
    model = some_model("hstu", time_bias=True)
    assert model.embedding.weight[0].abs().max() > 0
    items, times = torch.tensor([[0, 0, 3, 4]]), torch.tensor([[0, 0, 10**9, 10**9 + 5]])
    context, hidden = model.context(items, times), model.embed(items)
    for layer in range(2):
        hidden = model.run_layer(layer, hidden, context)
        assert torch.equal(hidden[0, :2], torch.zeros(2, 16))


def test_make_block_gives_the_kind_that_was_asked_for() -> None:
    blocks = {kind: make_block(kind, 8, 2, 0.0, time_bias=False) for kind in KINDS}
    assert len({type(block) for block in blocks.values()}) == 2
    assert all(isinstance(block, Block) for block in blocks.values())


@pytest.mark.parametrize("longest", [1, 16, 17, 50, 200, 10_000])
def test_position_buckets_grow_with_distance_and_stay_in_the_table(longest: int) -> None:
    buckets = position_buckets(longest)
    assert len(buckets) == longest
    assert buckets[0] == 0
    assert (buckets[1:] >= buckets[:-1]).all()
    assert int(buckets[-1]) < POSITION_BUCKETS
    near = min(longest, EXACT_DISTANCES)
    assert buckets[:near].tolist() == list(range(near))


class TestTimeBias:
    def bias(self) -> TimeBias:
        bias = TimeBias(heads=1)
        with torch.no_grad():
            bias.table.copy_(torch.arange(TimeBias.BUCKETS + 2, dtype=torch.float32)[None])
        return bias

    def test_score_follows_the_logarithm_of_the_time_between_two_items(self) -> None:
        scores = self.bias()(torch.tensor([[1000, 1001, 1000 + 1023]]))[0, 0]
        assert scores[1, 0].item() == pytest.approx(1)
        assert scores[2, 0].item() == pytest.approx(10)
        assert scores[1, 1].item() == 0

    def test_a_missing_time_has_its_own_score_and_never_reads_as_1970(self) -> None:
        scores = self.bias()(torch.tensor([[0, 1000, 2000]]))[0, 0]
        unknown = TimeBias.BUCKETS + 1
        assert scores[1, 0].item() == unknown
        assert scores[0, 0].item() == unknown
        assert scores[2, 1].item() < unknown

    def test_huge_and_backward_times_are_clamped(self) -> None:
        scores = self.bias()(torch.tensor([[1, 2**62, 5]]))[0, 0]
        assert scores[1, 0].item() == TimeBias.BUCKETS - 1
        assert scores[2, 1].item() == 0
