"""Plans reach their targets: a size, a memory, a latency, a quality."""

import time

import pytest
import torch
from any_models import CLASSES, QUICK, SAMPLES, SEQUENCES, Residual, Slow, analyzer_of, draw
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.analyzer import create_analyzer
from fathom.importance.compression import CompressionPlan, Measured, weights_mb
from fathom.importance.models.distillation import Distillation


def test_a_plan_takes_what_fits_however_large_the_layers_are() -> None:
    sizes = (64, 2, 2, 2)

    class Wide(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, inner), nn.Linear(inner, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).tanh())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*map(Wide, sizes)), nn.Linear(8, CLASSES))
    analyzer = create_analyzer(analysis_methods=QUICK)
    analyzer.load_model(model)
    analyzer.analyze_importance([(SEQUENCES[:, 0], draw(SAMPLES))])
    assert 0 not in analyzer.generate_compression_plan(target_ratio=3).keep
    # Exactly so many are allowed.
    many = nn.Sequential(nn.Sequential(*(Wide(4) for _ in range(11))), nn.Linear(8, CLASSES))
    analyzer.load_model(many)
    analyzer.analyze_importance([(SEQUENCES[:, 0], draw(SAMPLES))])
    assert len(analyzer.generate_compression_plan(target_ratio=1.1).keep) == 10


def test_a_plan_for_more_layers_than_an_integer_has_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*(Residual(4) for _ in range(66))), nn.Linear(4, CLASSES))
    for block in model[0]:
        block.attention = nn.Identity()
    analyzer = create_analyzer(analysis_methods=("block_influence",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(torch.randn(4, 4), draw(4))])
    assert len(analyzer.generate_compression_plan(target_ratio=1.02).keep) == 64


def test_a_plan_for_a_memory_or_a_quality_keeps_what_it_promises() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Sequential(*(Slow() for _ in range(8))), nn.Linear(256, CLASSES))
    analyzer = create_analyzer(analysis_methods=("ablation", "greedy_elimination"))
    analyzer.load_model(wide)
    inputs = torch.randn(64, 256)
    # What the whole model says is right, so that it has a quality to keep.
    analyzer.analyze_importance([(inputs, wide(inputs).argmax(1))])
    measured = Measured(analyzer.layers, analyzer._batches)
    whole = weights_mb(wide)
    for share in (0.3, 0.6, 0.9):
        plan = analyzer.generate_compression_plan(memory_mb=share * whole)
        assert share * whole - whole / 8 < weights_mb(plan.apply()) <= share * whole
    kept = {}
    for share in (0.2, 0.9):
        plan = analyzer.generate_compression_plan(min_quality=share)
        accuracy = measured.quality(plan.apply())[1]["accuracy"]
        assert accuracy >= share
        kept[share] = len(plan.keep)
        # One layer fewer does not.
        if kept[share] > 1:
            fewer = analyzer.generate_compression_plan(target_ratio=8 / (kept[share] - 1))
            assert measured.quality(fewer.apply())[1]["accuracy"] < share
    assert kept[0.2] < kept[0.9] < 8


class Waiting(nn.Module):
    """A block that takes three milliseconds on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.003)
        return x + self.linear(x)


def test_a_plan_for_a_latency_has_as_many_layers_as_fit() -> None:
    model = nn.Sequential(nn.Sequential(*(Waiting() for _ in range(8))), nn.Linear(4, CLASSES))
    analyzer = create_analyzer(analysis_methods=("block_influence", "greedy_elimination"))
    analyzer.load_model(model)
    analyzer.analyze_importance([(torch.randn(4, 4), draw(4))])
    plan = analyzer.generate_compression_plan(latency_ms=15)
    # Fewer only on a machine that is busy with something else.
    assert 1 <= len(plan.keep) <= 4
    assert plan.report()["latency_ms"]["before"] >= 24


def test_a_quality_is_searched_among_the_models_that_healing_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*(Slow() for _ in range(4))), nn.Linear(256, CLASSES))
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    inputs = torch.randn(64, 256)
    labels = model(inputs).argmax(1)
    analyzer.analyze_importance([(inputs, labels)])
    how = Distillation(epochs=60, learning_rate=1e-2, imitation=0.0)
    made: list[tuple[int, ...]] = []

    def healed(plan: CompressionPlan) -> nn.Module:
        made.append(plan.keep)
        return plan.heal(analyzer.batches_of([(inputs, labels)]), how)

    plan = analyzer.generate_compression_plan(min_quality=0.99, make=healed)
    assert len(plan.keep) == 1
    assert len(made) == 2
    with pytest.raises(ConfigError, match=r"without any layer less than 0\.99 of the accuracy stays"):
        analyzer.generate_compression_plan(min_quality=0.99)


def test_layers_of_unequal_sizes_are_searched_by_their_number() -> None:
    class Sized(nn.Module):
        def __init__(self, inner: int, share: float) -> None:
            super().__init__()
            self.up, self.down, self.share = nn.Linear(8, inner), nn.Linear(inner, 8), share

        def forward(self, x: Tensor) -> Tensor:
            return x + self.share * self.down(self.up(x).relu())

    torch.manual_seed(0)
    # The large one matters, the small ones do nothing.
    blocks = [Sized(4, 0.0), Sized(4, 0.0), Sized(4, 0.0), Sized(400, 20.0)]
    model = nn.Sequential(nn.Sequential(*blocks), nn.Linear(8, CLASSES))
    inputs = torch.randn(64, 8)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(inputs, model(inputs).argmax(1))])
    assert analyzer.generate_compression_plan(min_quality=0.99).keep == (3,)


def test_weights_of_several_sizes_and_such_as_are_shared_are_weighed_as_they_are() -> None:
    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    for name in ("mixed", "tied"):
        torch.manual_seed(0)
        model = Model(nn.Sequential(*(Slow() for _ in range(6))), nn.Linear(256, CLASSES))
        if name == "mixed":
            for block in model[0][3:]:
                block.to(torch.bfloat16).register_forward_pre_hook(lambda _, given: (given[0].bfloat16(),))
                block.register_forward_hook(lambda _module, _given, left: left.float())
        else:
            model.other = model[0][5].up
        analyzer = create_analyzer(analysis_methods=("ablation", "greedy_elimination"))
        analyzer.load_model(model)
        analyzer.analyze_importance([(torch.randn(16, 256), draw(16))])
        for share in (0.9, 0.5, 0.3):
            plan = analyzer.generate_compression_plan(memory_mb=share * weights_mb(model))
            assert weights_mb(plan.apply()) <= share * weights_mb(model)


def test_a_model_that_reads_its_layers_by_number_is_made_smaller() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(Slow() for _ in range(4)), nn.Linear(256, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for number in range(4):
                x = self.layers[number](x)
            return self.head(x)

    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Numbered())
    analyzer.analyze_importance([(torch.randn(16, 256), draw(16))])
    plan = analyzer.generate_compression_plan(target_ratio=2)
    assert plan.report()["ratio"] == pytest.approx(2.0)


def test_a_layer_that_others_need_is_no_saving() -> None:
    analyzer, model, batch = analyzer_of("translation", ("ablation",))
    analyzer.analyze_importance([batch])
    limit = weights_mb(model) * 0.95
    plan = analyzer.generate_compression_plan(memory_mb=limit)
    assert weights_mb(plan.apply()) <= limit
    # The first gives the others their positions' biases.
    assert 0 in plan.keep
    bypassed = CompressionPlan(plan.measured, (1,), 0.0, 0.0)
    assert bypassed.report()["ratio"] < bypassed.ratio


def test_a_target_that_cannot_be_had_is_one_line() -> None:
    analyzer, _, batch = analyzer_of("text", ("ablation",))
    analyzer.analyze_importance([batch])
    for given, text in (
        (
            {"target_ratio": 2.0, "memory_mb": 1.0},
            "give one target of ratio, memory_mb, latency_ms, min_quality, not 2",
        ),
        ({"target_ratio": 0.5}, r"ratio is 0\.5; it must be above 1"),
        ({"min_quality": 1.5}, r"min_quality is 1\.5; it must be above 0 and at most 1"),
        ({"latency_ms": float("nan")}, "latency_ms is nan"),
        ({"memory_mb": 1e9}, "already; no layer has to go"),
        ({"memory_mb": 1e-9}, "cannot be had by leaving out"),
        ({"latency_ms": 1e9}, "already; no layer has to go"),
        ({"latency_ms": 1e-9}, "with one layer the model still takes"),
    ):
        with pytest.raises(ConfigError, match=text):
            analyzer.generate_compression_plan(**given)
    own, _, boxes = analyzer_of("detection", ("ablation",))
    own.analyze_importance([boxes])
    with pytest.raises(ConfigError, match="a share of minus_loss cannot stay"):
        own.generate_compression_plan(min_quality=0.9)


def test_what_healing_leaves_decides_between_plans_of_one_size() -> None:
    analyzer, _, batch = analyzer_of("text", ("ablation", "gradient", "greedy_elimination"))
    analyzer.analyze_importance([batch])
    first = analyzer.generate_compression_plan(target_ratio=2)
    made: dict[tuple[int, ...], nn.Module] = {}

    def healed(plan: CompressionPlan) -> nn.Module:
        made[plan.keep] = plan.apply()
        if plan.keep == first.keep:
            # As if healing had spoiled it.
            made[plan.keep].classifier.weight.data.mul_(-1000)
        return made[plan.keep]

    chosen = analyzer.generate_compression_plan(target_ratio=2, make=healed)
    assert first.keep in made
    assert 1 < len(made) <= 3
    assert chosen.keep != first.keep
    loss = {keep: chosen.measured.quality(model)[0] for keep, model in made.items()}
    assert loss[chosen.keep] == min(loss.values()) < loss[first.keep]
