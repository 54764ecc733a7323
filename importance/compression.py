"""A model with fewer layers: made, healed, measured, written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from fathom.artefacts import COMPRESSED
from fathom.errors import ConfigError, FathomError
from fathom.files import new_folder, write_json
from fathom.importance.inputs import Inputs
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.calls import record
from fathom.importance.models.distillation import Distillation, Teacher, distil
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.models.layerwise import LayerPairs
from fathom.importance.models.onnx import export_onnx
from fathom.importance.models.pruning import before_the_next, paths_in, pruned
from fathom.importance.models.recurrent import with_layers_apart
from fathom.importance.models.save import save_pretrained, save_weights
from fathom.importance.models.stacks import find_stacks, parameters_of

Subset = tuple[int, ...]
STATES = "it needs layers that give the state"


@dataclass(frozen=True)
class Measured:
    """A model, the batches that its layers were ranked on, and its tokenizer, if it has one."""

    layers: ModuleLayers
    batches: Sequence[ModuleBatch]
    tokenizer: Callable[..., Any] | None = None

    @torch.no_grad()
    def quality(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """A model's mean loss on these samples, and its task's metrics."""
        task, labels = self.layers.task, [batch.labels for batch in self.batches]
        outputs = [batch.inputs.call(model) for batch in self.batches]
        losses = [task.losses(*pair) for pair in zip(outputs, labels, strict=True)]
        return torch.cat(losses).mean().item(), task.metrics(outputs, labels)

    @torch.no_grad()
    def latency_ms(self, model: nn.Module, *, rounds: int = 5) -> float:
        """Milliseconds that a model takes for the first sample alone: the median over rounds, after one to warm up."""
        one = self.layers.collation.part(self.batches[0].inputs, 0, 1)
        return 1e3 * median([_seconds(model, one) for _ in range(rounds + 1)][1:])


def weights_mb(model: nn.Module) -> float:
    """Megabytes (10^6) of a model's parameters, shared ones once."""
    return sum({id(value): value.nbytes for value in model.parameters()}.values()) / 1e6


@dataclass(frozen=True)
class CompressionPlan:
    """Which layers stay. ``loss_before``, ``loss_after``: mean loss on the samples of the ranking.

    ``order``: all layers, the most important first; empty where they are of equal importance.
    """

    measured: Measured = field(repr=False)
    keep: Subset
    loss_before: float
    loss_after: float
    order: Subset = ()

    @property
    def ratio(self) -> float:
        """Values in the parameters of all layers to those of the layers that stay."""
        layers = self.measured.layers
        return layers.size(layers.layers) / layers.size(self.keep)

    @property
    def kept(self) -> tuple[str, ...]:
        """The paths of the layers that stay."""
        return tuple(self.measured.layers.names[layer] for layer in self.keep)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of the layers that go."""
        return tuple(name for layer, name in enumerate(self.measured.layers.names) if layer not in self.keep)

    def apply(self) -> nn.Module:
        """A smaller model; the one that was analysed stays as it is.

        Raises ConfigError where it would not do what the layers did one by one.
        """
        layers = self.measured.layers
        gone = [layer for layer in layers.layers if layer not in self.keep]
        with layers:
            return pruned(layers, gone, self.measured.batches[0])

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each layer that stays counts in layer-wise distillation, by its place in the order; 1 in all."""
        by_importance = [layer for layer in self.order if layer in self.keep]
        points = [len(self.keep) - by_importance.index(layer) if self.order else 1 for layer in self.keep]
        return tuple(each / sum(points) for each in points)

    def heal(
        self,
        batches: Iterable[tuple[Inputs, Any]],
        how: Distillation | None = None,
        *,
        model: nn.Module | None = None,
        teachers: Sequence[nn.Module] = (),
    ) -> nn.Module:
        """The smaller model, trained on other samples to give what the whole model gives; see ``distil``.

        ``batches``: inputs and labels, as ``LayerAnalyzer.batches_of`` reads them from a loader; samples that the plan
        is measured on should not be among them. ``model``: that of ``apply`` or of an earlier healing. ``teachers``: to
        learn from in place of the whole model; they are called as it is, and give the same kind of output.

        With ``how.layerwise`` a layer goes by what the whole model gives the next layer that stays, or by the layer of
        another teacher that lies as deep; ``weights`` say how much it counts.
        """
        if isinstance(teachers, nn.Module):
            raise ConfigError("teachers is one model; give a list of models")
        layers, how = self.measured.layers, how or Distillation()
        student = self.apply() if model is None else model
        blocks = paths_in(layers, student, self.keep)
        models = [with_layers_apart(each) for each in teachers] or [layers.running]
        given = list(batches)
        if not all(isinstance(each, tuple) and isinstance(each[0], Inputs) for each in given):
            raise ConfigError("heal takes batches as analyzer.batches_of(loader) reads them")
        return distil(
            student,
            [Teacher(each, self._pairs(each, blocks) if how.layerwise else None) for each in models],
            layers.task,
            given,
            how,
            blocks=blocks,
            collation=layers.collation,
        )

    def _pairs(self, teacher: nn.Module, blocks: tuple[str, ...]) -> LayerPairs:
        layers = self.measured.layers
        if layers.adds(self.measured.batches[0]):
            raise ConfigError(f"layer-wise distillation: the model adds what its layers give; {STATES}")
        if teacher is layers.running:
            return LayerPairs(blocks, before_the_next(layers, self.keep, self.measured.batches[0]), self.weights)
        assert layers.stack is not None
        stacks = find_stacks(teacher)
        alike = [stack for stack in stacks if stack.path.endswith(layers.stack.path)] or stacks
        if len(alike) != 1:
            there = ", ".join(stack.path for stack in stacks) or "no repeated blocks"
            raise ConfigError(
                f"layer-wise distillation: {type(teacher).__name__} has {there}, and not {layers.stack.path}"
            )
        other = alike[0].blocks
        inputs = layers.task.inputs(teacher, self.measured.batches[0].inputs, self.measured.batches[0].labels)
        calls = record(teacher, inputs, [teacher.get_submodule(path) for path in other], [0] * len(other)).calls
        if len(calls) > 1 and all(call.added for call in calls[:-1]):
            raise ConfigError(f"layer-wise distillation: {type(teacher).__name__} adds what its layers give; {STATES}")
        places = [max(0, round((place + 1) * len(other) / len(blocks)) - 1) for place in range(len(blocks))]
        return LayerPairs(blocks, tuple(other[place] for place in places), self.weights)

    def report(self, model: nn.Module | None = None, *, rounds: int = 5) -> dict[str, Any]:
        """What is lost and won on the samples of the ranking: loss, metrics, parameters, and how much faster it runs.

        ``model``: that of ``apply`` or ``heal``. ``faster``: the median over rounds, each model in turn, of the time of
        the largest batch before and after. ``latency_ms``: of one sample alone.
        """
        layers, batches = self.measured.layers, self.measured.batches
        models = {"before": layers.model, "after": self.apply() if model is None else model}
        metrics: dict[str, dict[str, float]] = {}
        losses: dict[str, float] = {}
        with torch.no_grad():
            for name, each in models.items():
                losses[name], metrics[name] = self.measured.quality(each)
            ratios = []
            largest = max(batches, key=lambda batch: batch.samples).inputs
            for _ in range(rounds + 1):
                spent = {name: _seconds(each, largest) for name, each in models.items()}
                ratios.append(spent["before"] / spent["after"])
            alone = {name: round(self.measured.latency_ms(each), 3) for name, each in models.items()}
        return {
            "layers": len(layers.layers),
            "kept": list(self.kept),
            "left_out": list(self.left_out),
            "ratio": round(self._reached(models["after"]), 3),
            "loss": losses,
            "metrics": metrics,
            "parameters": {name: parameters_of([each]) for name, each in models.items()},
            "weights_mb": {name: round(weights_mb(each), 3) for name, each in models.items()},
            "latency_ms": alone,
            # The first round warms up.
            "faster": round(median(ratios[1:]), 3),
            "samples": sum(batch.samples for batch in batches),
        }

    def _reached(self, model: nn.Module) -> float:
        """The ratio of the layers' parameters that a model of this plan has; some layers are bypassed, and stay."""
        layers = self.measured.layers
        whole = layers.size(layers.layers)
        return whole / max(1, whole - parameters_of([layers.model]) + parameters_of([model]))

    def save(
        self,
        folder: Path | str,
        model: nn.Module | None = None,
        *,
        onnx: bool = False,
        report: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the smaller model into a folder, whole or not at all, with ``compression.json``, which is returned.

        A transformers model is written as such, with its tokenizer, if it gives the same when it is opened again:
        ``opens_with_transformers``. Else the weights are written as model.safetensors, and ``apply`` makes the module.
        Where it cannot be exported as ONNX the folder is written without, and then the error is raised.
        """
        smaller = self.apply() if model is None else model
        told = {"schema_version": 1, **(self.report(smaller) if report is None else report)}
        tokenizer: Any = self.measured.tokenizer
        refused: FathomError | None = None
        with new_folder(Path(folder), COMPRESSED) as new:
            told["opens_with_transformers"] = save_pretrained(smaller, self.measured.batches[0].inputs, new)
            if not told["opens_with_transformers"]:
                save_weights(smaller, new / "model.safetensors")
            if hasattr(tokenizer, "save_pretrained"):
                tokenizer.save_pretrained(new)
            try:
                if onnx:
                    self.export(new / "model.onnx", smaller)
            except FathomError as error:
                refused = error
            files = sorted(path for path in new.rglob("*") if path.is_file())
            told["files"] = {path.relative_to(new).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}
            write_json(new / "compression.json", told)
        if refused is not None:
            raise ConfigError(f"{folder} is written without model.onnx: {refused}")
        return told

    def export(
        self,
        path: Path | str,
        model: nn.Module | None = None,
        *,
        inputs: Mapping[str, Any] | Tensor | None = None,
    ) -> float:
        """Write the smaller model as ONNX, whole or not at all, and compare it with torch in onnxruntime.

        ``inputs``: an example; by default the first batch of the ranking. Returns the largest difference. Raises
        ParityError where that is too large.
        """
        example = self.measured.batches[0].inputs
        if inputs is not None:
            example = Inputs((), dict(inputs)) if isinstance(inputs, Mapping) else Inputs((inputs,))
        return export_onnx(self.apply() if model is None else model, example, Path(path))


def _seconds(model: nn.Module, inputs: Inputs) -> float:
    started = perf_counter()
    inputs.call(model)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - started
