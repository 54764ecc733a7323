"""Studies one model: its layers, every method beside the truth, and what is left when layers go."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.benchmarks.experiments.own_models.sources import WORK
from fathom.benchmarks.experiments.own_models.subjects import Batch, Ready, Subject
from fathom.benchmarks.experiments.own_models.width import narrowed
from fathom.benchmarks.interleaved import interleaved
from fathom.errors import FathomError
from fathom.importance.analyzer import LayerAnalyzer, create_analyzer
from fathom.importance.compression import CompressionPlan, weights_mb
from fathom.importance.inputs import Inputs
from fathom.importance.lattice.grades import Truth
from fathom.importance.models.distillation import Teacher, distil
from fathom.importance.models.stacks import Stack, parameters_of
from fathom.importance.search import fitting
from fathom.training.metrics import Floats, bootstrap_means, percentile

RATIOS = (1.35, 1.8, 2.5)
ROUNDS = 9
#: The baseline of the published claims tunes these layers and the head.
TUNED = 3


def study(name: str, subject: Subject, seed: int) -> dict[str, Any]:
    """All that is stored of one model."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "prepare"):
        ready = subject.make()
    rank = _count(ready.rank)
    analyzer = create_analyzer(name, subject.task, subject.modality, ["all"], task=ready.task, samples=rank, seed=seed)
    analyzer.load_model(ready.model, stack=_stack(ready))
    with _timed(seconds, "lattice"):
        lattice = analyzer.measure_lattice(ready.rank, WORK / name / "lattice", orders=subject.orders)
    with _timed(seconds, "rank"):
        ranking = analyzer.analyze_importance(ready.rank, lattice=lattice)
    layers = analyzer.layers
    seconds["forward"] = analyzer.forward_seconds()
    assert layers.stack is not None
    found = {"stack": layers.stack.path, "blocks": len(layers.stack), "layers": list(layers.names)}
    told = {"modalities": _modalities(analyzer, ready, subject)} if subject.modalities else {}
    with _timed(seconds, "compress"):
        compressed = _Compression(name, subject, ready, analyzer, seed).measured()
    return {
        "found": {**found, "fixed": layers.fixed, "counted": subject.counted},
        "parameters": {"model": parameters_of([ready.model]), "layers": layers.parameter_count},
        "ranked_samples": rank,
        "tested_samples": _count(ready.test),
        "subsets": len(lattice.masks),
        "methods": {
            method: {
                "seconds": scores.seconds,
                "scores": scores.scores,
                "tau": _tau(ranking.grades["loss"][method]),
            }
            for method, scores in ranking.methods.items()
        },
        "shapley_values": Truth.of(lattice).values.mean(0).tolist(),
        "consensus": _tau(ranking.grades["loss"]["consensus"]),
        "left_out": ranking.left_out,
        **compressed,
        **told,
        "seconds": {part: round(value, 4) for part, value in seconds.items()},
    }


def _modalities(analyzer: LayerAnalyzer, ready: Ready, subject: Subject) -> dict[str, Any]:
    """What the answers to the test samples, and the layers, take from each modality."""
    found = analyzer.analyze_modalities(ready.test, subject.modalities)
    return {
        "samples": found.samples,
        "rise": {name: value.as_dict() for name, value in found.rise.items()},
        "interaction": {" and ".join(pair): value.as_dict() for pair, value in found.interaction.items()},
        "by_layer": found.by_layer,
        "cross_attention": found.cross_attention,
    }


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[part] = time.monotonic() - started


def _count(batches: Sequence[Batch]) -> int:
    return sum(len(batch["labels"]) for batch in batches)


def _stack(ready: Ready) -> Stack | None:
    return None if ready.stack is None else Stack.of(ready.model, ready.stack)


def _tau(grade: Any) -> dict[str, float]:
    return {"value": grade.tau, "low": grade.low, "high": grade.high}


class _Compression:
    """The same model with fewer layers, by several choices, as it is left and healed."""

    def __init__(self, name: str, subject: Subject, ready: Ready, analyzer: LayerAnalyzer, seed: int) -> None:
        self.name, self.subject, self.ready, self.analyzer, self.seed = name, subject, ready, analyzer, seed
        self.layers = analyzer.layers
        self.heal = list(analyzer.batches_of(ready.heal[: subject.steps]))
        self.test = list(analyzer.batches_of(ready.test))
        self.before = self._judged(ready.model)

    def measured(self) -> dict[str, Any]:
        """The whole model's quality, and a row for each ratio."""
        metric, losses = self.before
        whole = {self.subject.metric: float(metric.mean()), "loss": float(losses.mean())}
        return {"whole": whole, "ratios": [self._row(ratio) for ratio in RATIOS if self.subject.compressed]}

    def _row(self, ratio: float) -> dict[str, Any]:
        try:
            plan = self.analyzer.generate_compression_plan(ratio)
        except FathomError as error:
            return {"ratio": ratio, "refused": str(error)}
        smaller = plan.apply()
        healed = plan.heal(self.heal, self.subject.healing, model=smaller)
        arms = {"plan": self._arm(smaller), "plan healed": self._arm(healed), **self._healed_otherwise(plan, ratio)}
        for name, keep in self._others(ratio).items():
            other = replace(plan, keep=keep)
            made = other.apply()
            arms[name] = self._arm(made)
            if name == "last":
                with self._only_the_end(other):
                    tuned = other.heal(self.heal, self.subject.healing, model=other.apply())
                arms["last tuned"] = self._arm(tuned)
            arms[f"{name} healed"] = self._arm(other.heal(self.heal, self.subject.healing, model=made))
        width = {}
        if self.subject.answers:
            narrow = narrowed(self.ready.model, self.test[0][0], self.subject.answers, parameters_of([smaller]))
            arms["width"] = self._arm(narrow)
            teachers = [Teacher(self.ready.model)]
            healed_narrow = distil(narrow, teachers, self.layers.task, self.heal, self.subject.healing)
            arms["width healed"] = self._arm(healed_narrow)
            width = {"parameters": parameters_of([narrow]), "faster": self._faster(narrow)}
        return {
            "ratio": ratio,
            "reached": plan.ratio,
            "width": width,
            "left_out": list(plan.left_out),
            "layers": len(plan.keep),
            "parameters": parameters_of([smaller]),
            "weights_mb": round(weights_mb(smaller), 2),
            "faster": self._faster(smaller),
            "onnx": self._onnx(plan, healed, ratio),
            "arms": arms,
        }

    def _healed_otherwise(self, plan: CompressionPlan, ratio: float) -> dict[str, dict[str, Any]]:
        """Equally long: by its layers too, by adapters alone, and the plan that is best once it is healed."""
        how = self.subject.healing
        by_arm = {
            "plan layerwise": replace(how, layerwise=1.0),
            "plan lora": replace(how, tune="lora", learning_rate=10 * how.learning_rate),
        }
        found = {}
        for name, other in by_arm.items():
            try:
                found[name] = self._arm(plan.heal(self.heal, other))
            except FathomError as error:
                found[name] = {"refused": str(error)}
        made: dict[tuple[int, ...], nn.Module] = {}

        def make(each: CompressionPlan) -> nn.Module:
            made[each.keep] = each.heal(self.heal, how)
            return made[each.keep]

        chosen = self.analyzer.generate_compression_plan(ratio, make=make)
        found["chosen healed"] = {**self._arm(made[chosen.keep]), "left_out": list(chosen.left_out)}
        return found

    def _others(self, ratio: float) -> dict[str, tuple[int, ...]]:
        """The choices to compare with: the first layers, and random ones."""
        count, rng = len(self.layers.layers), np.random.default_rng(self.seed)
        most = self.layers.size(self.layers.layers) / ratio * (1 + 1e-9)
        last = max(n for n in range(1, count + 1) if n == 1 or self.layers.size(range(n)) <= most)
        orders = [rng.permutation(count).tolist() for _ in range(self.subject.draws)]
        drawn = {f"random {n}": fitting(order, self.layers.size, most) for n, order in enumerate(orders)}
        return {"last": tuple(range(last)), **{name: keep for name, keep in drawn.items() if keep}}

    @contextmanager
    def _only_the_end(self, plan: CompressionPlan) -> Iterator[None]:
        """Everything is frozen but the last layers that stay, and what comes after the stack."""
        places = {
            value.data_ptr(): layer
            for layer in self.layers.layers
            for value in self.layers.layer_parameters(layer).values()
        }
        order = list(self.layers.model.parameters())
        behind = max(place for place, value in enumerate(order) if value.data_ptr() in places)
        flags = [value.requires_grad for value in order]
        for place, value in enumerate(order):
            value.requires_grad_(place > behind or places.get(value.data_ptr()) in plan.keep[-TUNED:])
        try:
            yield
        finally:
            for value, flag in zip(order, flags, strict=True):
                value.requires_grad_(flag)

    def _arm(self, model: nn.Module) -> dict[str, Any]:
        """What a model keeps of the whole one's quality, with an interval over test samples."""
        metric, losses = self._judged(model)
        before = self.before[0]
        means = bootstrap_means(np.stack((metric, before), 1), seed=self.seed)
        kept = percentile(float(metric.mean() / before.mean()), means[:, 0] / means[:, 1])
        return {self.subject.metric: float(metric.mean()), "loss": float(losses.mean()), "kept": kept.as_dict()}

    @torch.no_grad()
    def _judged(self, model: nn.Module) -> tuple[Floats, Floats]:
        """Metric and loss of each test sample."""
        task, metrics, losses = self.layers.task, [], []
        for inputs, labels in self.test:
            output = task_output(model, task, inputs, labels)
            losses.append(task.losses(output, labels))
            for row in range(len(losses[-1])):
                one = task.metrics([_row_of(output, row)], [labels[row : row + 1]])
                metrics.append(one[self.subject.metric])
        return np.array(metrics), torch.cat(losses).double().numpy()

    def _faster(self, smaller: nn.Module) -> float:
        """How many times less a batch takes, medians of rounds in turn."""
        task = self.layers.task
        inputs, labels = max(self.test, key=lambda pair: len(pair[1]))
        models: Mapping[str, nn.Module] = {"whole": self.ready.model, "smaller": smaller}

        def call(model: nn.Module) -> Callable[[], object]:
            return lambda: task_output(model, task, inputs, labels)

        with torch.no_grad():
            spent = interleaved({name: call(model) for name, model in models.items()}, ROUNDS)
        return round(spent["whole"] / spent["smaller"], 3)

    def _onnx(self, plan: CompressionPlan, model: nn.Module, ratio: float) -> dict[str, Any]:
        path = WORK / self.name / f"{ratio:g}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return {"difference": plan.export(path, model), "mb": round(path.stat().st_size / 1e6, 2)}
        except FathomError as error:
            return {"refused": str(error)}


def task_output(model: nn.Module, task: Any, inputs: Inputs, labels: Any) -> Any:
    """The model's output as its task calls it."""
    return task.inputs(model, inputs, labels).call(model)


def _row_of(output: Any, row: int) -> Any:
    """One sample's part of an output, in a form that tasks read."""
    if isinstance(output, Tensor):
        return output[row : row + 1]
    names = [name for name in ("logits", "start_logits", "end_logits") if getattr(output, name, None) is not None]
    return type(output)(**{name: output[name][row : row + 1] for name in names})
