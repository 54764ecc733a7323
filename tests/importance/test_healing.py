"""Smaller models learn to give what larger ones give: answers, and the states of layers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from any_models import CLASSES, PICTURES, SAMPLES, SEQUENCES, SIZES, Cnn, Stacked, analyzer_of, draw, t5, transformers
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError
from fathom.importance.analyzer import LayerAnalyzer, create_analyzer
from fathom.importance.compression import CompressionPlan
from fathom.importance.models.distillation import Distillation
from fathom.importance.models.layerwise import states_of
from fathom.importance.models.lora import add_adapters
from fathom.importance.models.pruning import before_the_next, paths_in


def trained(model: nn.Module, x: Tensor, labels: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def test_healing_makes_up_for_layers_that_are_gone_and_leaves_both_models_alone() -> None:
    torch.manual_seed(2)
    x = torch.randn(96, 6, 8)
    labels = (x.mean((1, 2)) > 0).long() + (x[:, 0, 0] > 0.5)
    model = trained(Stacked("plain"), x[:64], labels[:64])
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(x[64:], labels[64:])])
    plan = analyzer.generate_compression_plan(target_ratio=3.5)
    smaller = plan.apply()
    before = [value.clone() for value in (*model.parameters(), *smaller.parameters())]
    other = [(x[:32], labels[:32]), (x[32:64], labels[32:64])]
    how = Distillation(epochs=20, learning_rate=0.01)
    healed = plan.heal(analyzer.batches_of(other), how, model=smaller)
    told = plan.report(smaller), plan.report(healed)
    assert told[1]["loss"]["after"] < told[0]["loss"]["after"]
    assert told[0]["loss"]["after"] == pytest.approx(plan.loss_after, abs=1e-4)
    assert all(torch.equal(*pair) for pair in zip((*model.parameters(), *smaller.parameters()), before, strict=True))
    again = plan.heal(analyzer.batches_of(other), how, model=smaller)
    assert all(torch.equal(*pair) for pair in zip(healed.parameters(), again.parameters(), strict=True))
    assert not healed.training
    with pytest.raises(DataError, match="no batch to heal"):
        plan.heal([])
    with pytest.raises(ConfigError, match="epochs is 0; it must be 1 or more"):
        Distillation(epochs=0)


@pytest.mark.parametrize(
    "name", ["language model", "questions", "segmentation", "detection", "translation", "retrieval"]
)
def test_every_task_can_be_healed(name: str) -> None:
    analyzer, _, batch = analyzer_of(name, ("ablation",))
    analyzer.analyze_importance([batch])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    healed = plan.heal(analyzer.batches_of([batch]), Distillation(epochs=15, learning_rate=3e-3))
    assert plan.report(healed)["loss"]["after"] < plan.report()["loss"]["after"]


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_any_number_of_steps_heals(steps: int) -> None:
    torch.manual_seed(0)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Cnn())
    analyzer.analyze_importance([(PICTURES, draw(SAMPLES))])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    shares: list[float] = []
    # Batches of one picture, which a batch norm in training refuses.
    loader = [(PICTURES[:1], draw(1))] * steps
    healed = plan.heal(analyzer.batches_of(loader), Distillation(progress=lambda share, _: shares.append(share)))
    assert shares == [pytest.approx((step + 1) / steps) for step in range(steps)]
    assert all(torch.isfinite(value).all() for value in healed.state_dict().values())


def test_answers_that_cannot_be_given_do_not_spoil_healing() -> None:
    class Masked(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_fill(1, torch.tensor([2]), -torch.inf)

    torch.manual_seed(0)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    model = Masked("plain")
    model.blocks[0].requires_grad_(False)
    analyzer.load_model(model)
    analyzer.analyze_importance([(SEQUENCES, draw(SAMPLES, most=2))])
    plan = CompressionPlan(analyzer.generate_compression_plan(target_ratio=1.3).measured, (0, 1, 2), 0.0, 0.0)
    healed = plan.heal(analyzer.batches_of([(SEQUENCES, draw(SAMPLES, most=2))]))
    assert torch.equal(healed.blocks[0].linear.weight, model.blocks[0].linear.weight)
    assert not torch.equal(healed.blocks[1].linear.weight, model.blocks[1].linear.weight)
    assert [value.requires_grad for value in healed.blocks[0].parameters()] == [False] * 6


def loss_of(plan: CompressionPlan, model: nn.Module) -> float:
    return plan.measured.quality(model)[0]


@torch.no_grad()
def livelier(model: nn.Module) -> nn.Module:
    """The same with larger weights: layers that were just made by transformers do next to nothing."""
    for value in model.parameters():
        if value.dim() > 1:
            value.mul_(15)
    return model.eval()


def ready(name: str, ratio: float = 1.3) -> tuple[LayerAnalyzer, CompressionPlan, list[Any]]:
    """A plan, and the batches to heal it on: the same, for what is learned shall be seen."""
    analyzer, model, batch = analyzer_of(name, ("ablation",))
    if name == "text":
        livelier(model)
    analyzer.analyze_importance([batch])
    return analyzer, analyzer.generate_compression_plan(target_ratio=ratio), list(analyzer.batches_of([batch]))


@pytest.mark.parametrize("name", ["text", "language model", "pictures", "graphs"])
def test_adapters_change_the_layers_matrices_and_norms_alone_and_are_merged(name: str) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    _, plan, batches = ready(name)
    smaller = plan.apply()
    healed = plan.heal(batches, Distillation(epochs=15, learning_rate=3e-2, tune="lora"), model=smaller)
    assert loss_of(plan, healed) < loss_of(plan, smaller)
    before, after = smaller.state_dict(), healed.state_dict()
    assert list(before) == list(after)
    changed = {path for path in before if not torch.equal(before[path], after[path])}
    inside = paths_in(plan.measured.layers, smaller, plan.keep)
    learned_wide = False
    assert changed
    assert all(any(path.startswith(f"{block}.") for block in inside) for path in changed)
    for path in changed:
        difference = (after[path] - before[path]).flatten(1) if before[path].dim() > 1 else None
        if difference is not None:
            assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 8
            learned_wide |= min(difference.shape) > 8
    assert learned_wide == (name in ("text", "language model"))
    assert [value.requires_grad for value in healed.parameters()] == [True] * len(list(smaller.parameters()))


class Odd(nn.Module):
    """A block with matrices that no adapter can stand beside, and one that it can."""

    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self.shared, self.own, self.tied = shared, nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = shared.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.frozen, self.norm = nn.Linear(16, 16).requires_grad_(False), nn.LayerNorm(16).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.own(self.norm(x)).relu() + self.shared(x) + self.tied(x) + self.normed(x)
        return x + self.frozen(hidden).tanh()


def test_no_adapter_stands_where_it_could_not_be_merged_or_is_not_wanted() -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Sequential(*(Odd(shared) for _ in range(4))), nn.Linear(16, CLASSES))
    x = torch.randn(24, 16)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(x, draw(24))])
    plan = analyzer.generate_compression_plan(target_ratio=1.2)
    smaller = plan.apply()
    how = Distillation(epochs=10, learning_rate=0.1, tune="lora", imitation=0.0)
    losses: list[float] = []
    told = replace(how, progress=lambda _, loss: losses.append(loss))
    healed = plan.heal(analyzer.batches_of([(x, draw(24))]), told, model=smaller)
    before, after = smaller.state_dict(), healed.state_dict()
    changed = {path.rpartition(".")[0] for path in before if not torch.equal(before[path], after[path])}
    assert {path.rpartition(".")[2] for path in changed} == {"own"}
    assert losses[-1] < losses[0]
    convolution = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv1d(1, 1, 3, dilation=2)), nn.Sequential(nn.ReLU())))
    with pytest.raises(ConfigError, match="LoRA needs"):
        add_adapters(convolution, ("0",))


def test_a_model_without_a_matrix_to_adapt_is_one_line() -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    _, plan, batches = ready("lstm")
    with pytest.raises(ConfigError, match="LoRA needs linear or convolutional layers"):
        plan.heal(batches, Distillation(tune="lora"))


@pytest.mark.parametrize("name", ["text", "translation", "pictures", "lstm"])
def test_layers_learn_to_leave_what_the_next_layer_was_given_in_the_whole_model(name: str) -> None:
    _, plan, batches = ready(name)
    smaller, layers = plan.apply(), plan.measured.layers
    inside, targets = paths_in(layers, smaller, plan.keep), before_the_next(layers, plan.keep, plan.measured.batches[0])
    # The layers that are gone lie between a layer and that whose state it shall leave.
    assert len(set(targets)) == len(plan.keep) < len(layers.layers)
    paths = paths_in(layers, layers.running, layers.layers)
    (alone,) = before_the_next(layers, (0,), plan.measured.batches[0])
    # With no other layer to come, the last one; in pictures, the last of its own shape.
    assert alone == {"pictures": paths[1]}.get(name, paths[-1])
    assert before_the_next(layers, (0, 1), plan.measured.batches[0])[0] == paths[0]
    inputs = layers.task.inputs(smaller, *batches[0])

    def apart(model: nn.Module) -> float:
        with torch.no_grad(), states_of(model, inside) as own, states_of(layers.running, targets) as other:
            inputs.call(model)
            inputs.call(layers.running)
        return sum(((own[a] - other[b]) ** 2).mean().item() for a, b in zip(inside, targets, strict=True))

    how = Distillation(epochs=40, learning_rate=1e-2, imitation=0.0, layerwise=100.0)
    assert apart(plan.heal(batches, how, model=smaller)) < 0.7 * apart(smaller)


def test_layers_count_by_their_place_in_the_ranking() -> None:
    _, plan, _ = ready("text")
    first, *_, last = (layer for layer in plan.order if layer in plan.keep)
    by_layer = dict(zip(plan.keep, plan.weights, strict=True))
    assert sum(plan.weights) == pytest.approx(1)
    assert by_layer[first] == max(plan.weights) > by_layer[last] == min(plan.weights) > 0


def test_wider_and_deeper_teachers_teach_answers_and_layers() -> None:
    analyzer, plan, batches = ready("text")
    sizes = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    config = transformers.BertConfig(vocab_size=50, num_labels=CLASSES, **sizes)
    wide = livelier(transformers.BertForSequenceClassification(config))
    inputs, _ = batches[0]

    def divergence(model: nn.Module, *teachers: nn.Module) -> float:
        with torch.no_grad():
            wanted = torch.stack([inputs.call(each).logits.softmax(-1) for each in teachers]).mean(0)
            return F.kl_div(inputs.call(model).logits.log_softmax(-1), wanted, reduction="batchmean").item()

    how = Distillation(epochs=40, learning_rate=1e-2, imitation=1.0, temperature=1.0, layerwise=0.1)
    smaller, both = plan.apply(), (wide, analyzer.layers.model)
    before = [value.clone() for value in wide.parameters()]
    for teachers in ((wide,), both):
        healed = plan.heal(batches, how, model=smaller, teachers=teachers)
        assert divergence(healed, *teachers) < 0.2 * divergence(smaller, *teachers)
    assert all(torch.equal(*pair) for pair in zip(wide.parameters(), before, strict=True))
    other = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, num_labels=7, **SIZES))
    with pytest.raises(ConfigError, match="must know the same answers"):
        plan.heal(batches, teachers=[other])
    with pytest.raises(ConfigError, match="has no repeated blocks, and not bert"):
        plan.heal(batches, how, teachers=[nn.Linear(3, 3)])
    mixed = plan.heal(batches, replace(how, precision="bf16"), model=smaller, teachers=(wide,))
    assert divergence(mixed, wide) < 0.2 * divergence(smaller, wide)
    # A teacher is left in the mode that it was in.
    wide.train()
    plan.heal(batches, teachers=[wide])
    assert all(part.training for part in wide.modules())


def test_a_decoder_goes_by_a_decoder_and_by_no_layers_that_add_outside() -> None:
    _, plan, _ = ready("translation")
    other = t5()
    pairs = plan._pairs(other, paths_in(plan.measured.layers, plan.apply(), plan.keep))
    assert all(path.startswith("decoder.") for path in pairs.teacher)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Stacked("plain"))
    batch = (SEQUENCES, draw(SAMPLES))
    analyzer.analyze_importance([batch])
    how = Distillation(layerwise=1.0)
    with pytest.raises(ConfigError, match="Stacked adds what its layers give"):
        analyzer.generate_compression_plan(target_ratio=1.3).heal(
            analyzer.batches_of([batch]), how, teachers=[Stacked("outside")]
        )


def test_padding_does_not_count_and_torch_s_own_transformer_is_compared() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 4), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=src_key_padding_mask)[:, 0])

    torch.manual_seed(0)
    padded = torch.zeros(SAMPLES, 6, dtype=torch.bool)
    padded[::2, 4:] = True
    batch = {"x": torch.randn(SAMPLES, 6, 16), "src_key_padding_mask": padded, "labels": draw(SAMPLES)}
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Encoder())
    analyzer.analyze_importance([batch])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    how = Distillation(epochs=10, learning_rate=3e-3, layerwise=1.0)
    assert loss_of(plan, plan.heal(analyzer.batches_of([batch]), how)) < loss_of(plan, plan.apply())


def counted(
    model: nn.Module, plan: CompressionPlan, batches: list[Any], how: Distillation
) -> tuple[int, set[torch.dtype]]:
    """How often the first layer's own layer of queries runs in healing, and what kinds of numbers it gives."""
    calls: list[torch.dtype] = []
    own = nn.Linear.forward

    def count(self: nn.Linear, x: Tensor) -> Tensor:
        found = own(self, x)
        if self.weight.requires_grad and torch.is_grad_enabled() and self.weight.shape == (32, 16):
            calls.append(found.dtype)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", count)
        plan.heal(batches, how, model=model)
    return len(calls), set(calls)


def test_mixed_precision_and_running_layers_twice_heal_as_well() -> None:
    _, plan, batches = ready("text")
    smaller = plan.apply()
    how = Distillation(epochs=5, learning_rate=3e-3)
    plain = plan.heal(batches, how, model=smaller)
    twice = plan.heal(batches, replace(how, checkpointing=True), model=smaller)
    mixed = plan.heal(batches, replace(how, precision="bf16"), model=smaller)
    assert all("forward" not in vars(part) for part in twice.modules())
    calls, kinds = counted(smaller, plan, batches, how)
    assert counted(smaller, plan, batches, replace(how, checkpointing=True))[0] == 2 * calls
    assert kinds == {torch.float32}
    assert counted(smaller, plan, batches, replace(how, precision="bf16"))[1] == {torch.bfloat16}
    for one, other in zip(plain.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert loss_of(plan, mixed) < loss_of(plan, smaller)
    assert loss_of(plan, mixed) == pytest.approx(loss_of(plan, plain), rel=0.05)
    assert {value.dtype for value in mixed.parameters()} == {torch.float32}


def test_settings_that_make_no_sense_are_one_line() -> None:
    for wrong in ({"layerwise": -1.0}, {"tune": "some"}, {"precision": "fp8"}, {"learning_rate": float("nan")}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"^{name} is .*; it must be "):
            Distillation(**wrong)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Stacked("outside"))
    analyzer.analyze_importance([(SEQUENCES, draw(SAMPLES))])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    with pytest.raises(ConfigError, match=r"as analyzer\.batches_of"):
        plan.heal([(SEQUENCES, draw(SAMPLES))])
    with pytest.raises(ConfigError, match="give a list of models"):
        plan.heal([], teachers=nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="the model adds what its layers give"):
        plan.heal(analyzer.batches_of([(SEQUENCES, draw(SAMPLES))]), Distillation(layerwise=1.0))
