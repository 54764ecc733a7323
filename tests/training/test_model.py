import pytest
import torch
from pydantic import ValidationError

from fathom.training.model import ElasticModel, ModelConfig, ModelSettings, prefix_paths


def some_model(**changes: object) -> ElasticModel:
    torch.manual_seed(0)
    shape = {"items": 30, "layers": 4, "paths": prefix_paths((2, 4)), "width": 16, "max_history": 12} | changes
    return ElasticModel(ModelConfig.model_validate(shape)).eval()


ITEMS = torch.tensor([[0, 0, 5, 7, 9], [1, 2, 3, 4, 30]])


def test_user_vectors_have_unit_norm_at_every_depth_and_position() -> None:
    model = some_model()
    for vectors in model(ITEMS).values():
        assert vectors.shape == (2, 5, 16)
        norms = vectors.norm(dim=-1)[ITEMS != 0]
        torch.testing.assert_close(norms, torch.ones_like(norms))
    torch.testing.assert_close(model.item_vectors().norm(dim=-1), torch.ones(30))


@pytest.mark.parametrize("depth", [2, 4])
def test_user_vectors_are_those_of_the_newest_item(depth: int) -> None:
    model = some_model()
    torch.testing.assert_close(model.user_vectors(ITEMS, depth=depth), model(ITEMS)[depth][:, -1], atol=1e-6, rtol=0)


def test_the_deepest_exit_is_the_default() -> None:
    model = some_model()
    assert torch.equal(model.user_vectors(ITEMS), model.user_vectors(ITEMS, depth=4))


def test_an_item_beyond_the_span_reaches_the_newest_only_through_the_layers_below() -> None:
    model = some_model(span=3)
    items = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 9, 3, 4, 5]])  # three back from the newest
    context, other = model.context(items), model.context(changed)
    once, once_changed = (model.run_layer(0, model.embed(x), c) for x, c in ((items, context), (changed, other)))
    assert torch.equal(once[:, -1], once_changed[:, -1])
    twice, twice_changed = model.run_layer(1, once, context), model.run_layer(1, once_changed, other)
    assert not torch.allclose(twice[:, -1], twice_changed[:, -1])


def test_each_depth_runs_its_own_path_in_order() -> None:
    model = some_model(paths={2: (0, 3), 4: (0, 2, 3, 1)}, strategy="permuted-prefix")
    context, hidden = model.context(ITEMS), model.embed(ITEMS)
    for layer in (0, 2, 3, 1):
        hidden = model.run_layer(layer, hidden, context)
    torch.testing.assert_close(model(ITEMS)[4], model.read_exit(4, hidden))
    assert not torch.allclose(model(ITEMS)[2], some_model()(ITEMS)[2])


def test_depths_that_begin_alike_run_the_common_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = some_model()
    ran = []
    run_layer = model.run_layer
    monkeypatch.setattr(model, "run_layer", lambda layer, *rest: ran.append(layer) or run_layer(layer, *rest))
    model(ITEMS)
    assert ran == [0, 1, 2, 3]


def test_only_the_depths_that_are_asked_for_are_computed() -> None:
    assert set(some_model()(ITEMS, depths=(2,))) == {2}


def test_a_skipped_layer_passes_its_input_on() -> None:
    model = some_model()
    skipped = model(ITEMS, skip={1, 3})[4]
    model.block(1).become_identity()
    model.block(3).become_identity()
    torch.testing.assert_close(skipped, model(ITEMS)[4])


def test_no_timestamps_means_unknown_times() -> None:
    model = some_model(time_bias=True)
    with torch.no_grad():
        assert model.time is not None
        model.time.table.normal_()
    times = torch.where(ITEMS == 0, 0, 10**9 + torch.arange(5) * 3600)
    assert torch.equal(model.user_vectors(ITEMS), model.user_vectors(ITEMS, torch.zeros_like(ITEMS)))
    assert not torch.allclose(model.user_vectors(ITEMS), model.user_vectors(ITEMS, times))


def test_without_time_bias_timestamps_are_ignored() -> None:
    model = some_model()
    assert not model.uses_timestamps
    assert torch.equal(model.user_vectors(ITEMS, ITEMS * 10**6), model.user_vectors(ITEMS))


def test_with_paths_keeps_all_layers_and_starts_exits_from_the_nearest() -> None:
    model = some_model()
    changed = model.with_paths({2: (0, 2), 3: (0, 1, 2), 4: (0, 2, 1, 3)}, "nested")
    assert changed.depths == (2, 3, 4)
    assert changed.config.strategy == "nested"
    assert torch.equal(changed.item_vectors(), model.item_vectors())
    assert all(torch.equal(a, b) for a, b in zip(changed.layers.parameters(), model.layers.parameters(), strict=True))
    hidden = torch.randn(1, 16)
    assert torch.equal(changed.read_exit(3, hidden), model.read_exit(2, hidden))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": {2: (0, 1, 2)}}, "depth 2 must name 2 different layers"),
        ({"paths": {2: (1, 1)}}, "different layers"),
        ({"paths": {2: (0, 4)}}, r"outside 0..3"),
        ({"paths": {}}, "paths is empty"),
        ({"heads": 3}, "not a multiple of heads"),
        ({"temperature": 0.001}, "temperature"),
        ({"wdith": 8}, "wdith"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        some_model(**change)


def test_settings_become_a_shape_once_the_catalogue_is_known() -> None:
    config = ModelSettings(layers=6, depths=(2, 6), width=8, heads=1).for_items(11)
    assert (config.items, config.width, config.paths) == (11, 8, {2: (0, 1), 6: (0, 1, 2, 3, 4, 5)})
    with pytest.raises(ValidationError, match=r"do not lie in 1..6"):
        ModelSettings(layers=6, depths=(4, 8))


@pytest.mark.parametrize("block", ["hstu", "gated"])
@pytest.mark.parametrize("time_bias", [False, True])
def test_a_history_that_grows_piece_by_piece_gives_what_it_gives_at_once(block: str, time_bias: bool) -> None:
    model = some_model(block=block, time_bias=time_bias, span=4, heads=2)
    if model.time is not None:
        torch.nn.init.normal_(model.time.table)
    items = torch.tensor([[0, 0, 5, 7, 9, 3, 2, 2, 8], [1, 2, 3, 4, 30, 6, 7, 8, 9]])
    seconds = torch.arange(18).reshape(2, 9) ** 2 * 100
    with torch.no_grad():
        whole = model.hidden(items, seconds, depths=[4])[4]
        past = {layer: torch.zeros(2, 4, 0, 8) for layer in range(4)}
        done = 0
        for new in (3, 1, 1, 2, 1, 1):
            known = slice(max(0, done - 3), done + new)
            context = model.context(items[:, known], seconds[:, known], new)
            hidden = model.embed(items[:, done : done + new])
            for layer in range(4):
                last = model.block(layer).extend(hidden, past[layer], context, last_only=True)[0]
                hidden, made = model.block(layer).extend(hidden, past[layer], context)
                torch.testing.assert_close(last, hidden[:, -1:], atol=1e-6, rtol=0)
                past[layer] = torch.cat((past[layer], made), dim=2)[:, :, -3:]
            done += new
            real = items[:, done - new : done] != 0
            torch.testing.assert_close(hidden[real], whole[:, done - new : done][real], atol=1e-5, rtol=0)
