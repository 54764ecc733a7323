"""Ranks the layers of any torch model and makes it smaller: the front of ``importance`` for Python.

analyzer = create_analyzer(task_type="classification", modality_type="text")
analyzer.load_model(model)
ranking = analyzer.analyze_importance(loader)
smaller = analyzer.generate_compression_plan(target_ratio=2.5).apply()
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.artefacts import COMPRESSED
from fathom.errors import ConfigError, DataError
from fathom.files import new_folder, write_json
from fathom.importance.inputs import Inputs
from fathom.importance.lattice.lattice import judge_subsets
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.collation import Collation, Dense, Graphs
from fathom.importance.models.layered import ModuleBatch, ModuleLayers
from fathom.importance.models.onnx import export_onnx
from fathom.importance.models.save import save_pretrained, save_weights
from fathom.importance.models.stacks import Stack, parameters_of
from fathom.importance.rank import Progress, rank_layers
from fathom.importance.registry import ALL, load_methods
from fathom.importance.tasks.interface import IGNORED, Task
from fathom.importance.tasks.many_labels import Generation, Segmentation, SequenceToSequence
from fathom.importance.tasks.own_loss import OwnLoss
from fathom.importance.tasks.single_label import Classification, Recommendation, ReinforcementLearning, Retrieval
from fathom.importance.tasks.spans import QuestionAnswering

#: Values of the gradients of all samples of a batch, at most (128 MB).
GRADIENT_VALUES = 2**25


class TaskType(StrEnum):
    """What a model is for."""

    CLASSIFICATION = "classification"
    GENERATION = "generation"
    RETRIEVAL = "retrieval"
    RECOMMENDATION = "recommendation"
    DETECTION = "detection"
    SEGMENTATION = "segmentation"
    TRANSLATION = "translation"
    SUMMARISATION = "summarisation"
    QUESTION_ANSWERING = "question_answering"
    REINFORCEMENT_LEARNING = "reinforcement_learning"


class Modality(StrEnum):
    """What a model is given."""

    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"
    MULTIMODAL = "multimodal"
    GRAPH = "graph"
    TABULAR = "tabular"


TASKS: dict[TaskType, Callable[..., Task]] = {
    TaskType.CLASSIFICATION: Classification,
    TaskType.GENERATION: Generation,
    TaskType.RETRIEVAL: Retrieval,
    TaskType.RECOMMENDATION: Recommendation,
    TaskType.DETECTION: OwnLoss,
    TaskType.SEGMENTATION: Segmentation,
    TaskType.TRANSLATION: SequenceToSequence,
    TaskType.SUMMARISATION: SequenceToSequence,
    TaskType.QUESTION_ANSWERING: QuestionAnswering,
    TaskType.REINFORCEMENT_LEARNING: ReinforcementLearning,
}


@dataclass(frozen=True)
class AnalysisConfig:
    """How an analyzer works.

    ``model_name``: for people. ``modality_type``: only graphs are read in another way, see ``collation.Graphs``.
    ``analysis_methods``: names, or ``all`` for every method that applies. ``task``: in place of ``task_type``, one with
    settings of its own, as ``Retrieval(candidates=...)`` or ``OwnLoss(loss=...)``, or a class of one's own.
    ``samples``: how many samples of the loader are measured at most.
    """

    model_name: str = ""
    task_type: TaskType = TaskType.CLASSIFICATION
    modality_type: Modality = Modality.TEXT
    analysis_methods: tuple[str, ...] = ("ablation", "block_influence", "gradient", "fisher")
    task: Task | None = None
    samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_type", _one_of(TaskType, self.task_type, "task"))
        object.__setattr__(self, "modality_type", _one_of(Modality, self.modality_type, "modality"))
        if self.samples < 2:
            raise ConfigError(f"samples is {self.samples}; a ranking needs at least 2")

    @property
    def judged_by(self) -> Task:
        """The task itself."""
        return self.task or TASKS[self.task_type](name=self.task_type.value)


def create_analyzer(
    model_name: str = "",
    task_type: str = TaskType.CLASSIFICATION,
    modality_type: str = Modality.TEXT,
    analysis_methods: Sequence[str] | None = None,
    **more: Any,
) -> "LayerAnalyzer":
    """An analyzer by the names of a task and a modality; ``more``: the other fields of ``AnalysisConfig``.

    Raises ConfigError for a name that is not known.
    """
    given = {} if analysis_methods is None else {"analysis_methods": tuple(analysis_methods)}
    unknown = set(more) - {"task", "samples", "seed"}
    if unknown:
        raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; known: task, samples, seed")
    return LayerAnalyzer(
        AnalysisConfig(model_name, TaskType(_one_of(TaskType, task_type, "task")), modality_type, **given, **more)  # type: ignore[arg-type]
    )


@dataclass
class LayerAnalyzer:
    """Ranks the layers of one model; ``load_model`` comes first."""

    config: AnalysisConfig
    ranking: LayerRanking | None = None
    _layers: ModuleLayers | None = field(default=None, repr=False)
    _tokenizer: Callable[..., Any] | None = field(default=None, repr=False)
    _batches: list[ModuleBatch] = field(default_factory=list, repr=False)

    def load_model(
        self, model: nn.Module, tokenizer: Callable[..., Any] | None = None, *, stack: Stack | None = None
    ) -> None:
        """Take a model, which is put into evaluation mode and not changed otherwise.

        ``tokenizer``: makes inputs of lists of texts. ``stack``: which blocks are its layers, where they should not be
        found (see ``models.stacks.find_stacks``). Raises ConfigError where there is nothing to rank.
        """
        collation: Collation = Graphs() if self.config.modality_type is Modality.GRAPH else Dense()
        self._layers = ModuleLayers(model, self.config.judged_by, stack, collation)
        self._tokenizer, self._batches, self.ranking = tokenizer, [], None

    @property
    def layers(self) -> ModuleLayers:
        """The model's layers; raises ConfigError before ``load_model``."""
        if self._layers is None:
            raise ConfigError("no model: call load_model first")
        return self._layers

    def analyze_importance(self, loader: Iterable[Any], *, progress: Progress | None = None) -> LayerRanking:
        """Rank all layers by the methods of the config.

        ``loader``: batches, each a dict of tensors by the names of the model's arguments with ``labels``, or (inputs,
        labels) with inputs a tensor, such a dict or texts. Labels may be left out for generation. Raises ConfigError
        for what does not fit the task, DataError where there is no sample.
        """
        methods = load_methods(self.config.analysis_methods)
        each = any(getattr(method, "per_sample_gradients", False) for method in methods.values())
        with self.layers:
            self._batches = self._read(loader, GRADIENT_VALUES if each else None)
            ranking = rank_layers(
                self.layers,
                self._batches,
                methods,
                seed=self.config.seed,
                skip_inapplicable=ALL in self.config.analysis_methods,
                progress=progress,
            )
        self.ranking = replace(ranking, layer_names=self.layers.names)
        return self.ranking

    def generate_compression_plan(self, target_ratio: float = 2.0) -> "CompressionPlan":
        """Which layers to keep so that the layers' parameters shrink by the ratio, at least.

        Candidates are the best layers by each method and by their consensus, and what is left when one layer after
        another goes; the plan has the candidate with the least loss on the samples of the ranking. Raises ConfigError
        before ``analyze_importance`` and for an impossible ratio.
        """
        if self.ranking is None:
            raise ConfigError("no ranking: call analyze_importance first")
        layers = self.layers
        count = len(layers.layers)
        if not 1 < target_ratio < count + 1:
            raise ConfigError(f"a ratio of {target_ratio:g} cannot be had by leaving out some of {count} layers")
        layers.check_apart()
        sizes = [layers.size([layer]) for layer in layers.layers]
        # Layers that fit exactly must not be lost to rounding.
        most = layers.size(layers.layers) / target_ratio * (1 + 1e-9)
        orders = [
            self.ranking.consensus_order,
            *(tuple(np.argsort(method.ranks).tolist()) for method in self.ranking.methods.values()),
        ]
        with layers:
            candidates = {_largest(order, sizes, most) for order in orders} | {self._one_after_another(most)}
            candidates.discard(())
            losses = self._losses_of([*candidates, tuple(layers.layers)])
        if not candidates:
            raise ConfigError(f"no single layer is as small as a ratio of {target_ratio:g} asks for")
        keep = min(candidates, key=lambda each: (losses[each], each))
        ratio = layers.size(layers.layers) / layers.size(keep)
        return CompressionPlan(self, keep, ratio, losses[tuple(layers.layers)], losses[keep])

    def _one_after_another(self, most: float) -> tuple[int, ...]:
        """What is left where that layer goes which is missed least, again and again, until the rest is small enough."""
        kept = tuple(self.layers.layers)
        while self.layers.size(kept) > most and len(kept) > 1:
            fewer = [tuple(other for other in kept if other != layer) for layer in kept]
            losses = self._losses_of(fewer)
            kept = min(fewer, key=lambda each: losses[each])
        return kept if self.layers.size(kept) <= most else ()

    def _losses_of(self, subsets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        """The mean loss of the samples with only these layers."""
        # From 63 layers on a mask is no int64 any more.
        kind = np.int64 if len(self.layers.layers) < 63 else object
        masks = np.array([sum(1 << layer for layer in subset) for subset in subsets], dtype=kind)
        ascending, places = np.unique(masks, return_inverse=True)
        found = np.concatenate([judge_subsets(self.layers, batch, ascending)[0] for batch in self._batches])
        return dict(zip(subsets, found.mean(0, dtype=np.float64)[places].tolist(), strict=True))

    def _read(self, loader: Iterable[Any], values: int | None) -> list[ModuleBatch]:
        """The samples of a loader, in batches whose gradients have at most so many values."""
        layers, collation, left = self.layers, self.layers.collation, self.config.samples
        batches: list[ModuleBatch] = []
        for given in loader:
            inputs, labels = self._split(given)
            count = min(collation.samples(inputs), left)
            if not layers.layers and count:
                # Once, to know how large the layers are.
                layers.batch(collation.part(inputs, 0, 1), collation.part_of_labels(labels, 0, 1))
            size = count if values is None else max(1, min(count, values // max(1, layers.parameter_count)))
            for ends in pairwise([*range(0, count, size), count]):
                batches.append(layers.batch(collation.part(inputs, *ends), collation.part_of_labels(labels, *ends)))
            left -= count
            if not left:
                break
        if not batches:
            raise DataError("the loader gives no sample; there is nothing to rank the layers on")
        return batches

    def _split(self, given: Any) -> tuple[Inputs, Any]:
        """Inputs and labels of what a loader gives."""
        device = next(self.layers.model.parameters()).device
        several = isinstance(given, tuple | list) and not all(isinstance(each, str) for each in given)
        *parts, labels = given if several and len(given) > 1 else (*(given if several else (given,)), None)
        if len(parts) == 1 and _are_texts(parts[0]):
            if self._tokenizer is None:
                raise ConfigError("the loader gives texts: give load_model a tokenizer")
            parts = [self._tokenizer(list(parts[0]), padding=True, truncation=True, return_tensors="pt")]
        if len(parts) == 1 and isinstance(parts[0], Inputs):
            called = Inputs(_to(parts[0].args, device), _to(parts[0].kwargs, device))
        elif len(parts) == 1 and isinstance(parts[0], Mapping):
            named = dict(parts[0])
            labels = named.pop("labels", labels)
            called = Inputs((), _to(named, device))
        else:
            called = Inputs(_to(tuple(parts), device))
        if labels is None and self.config.task_type is TaskType.GENERATION:
            labels = _tokens_of(called)
        if labels is None:
            task = self.config.task_type.value
            raise ConfigError(
                f"the loader gives no labels, which {task} needs: give (inputs, labels), or labels by name"
            )
        labels = _to(_as_tensor(labels), device)
        whole = isinstance(labels, Tensor) and not labels.is_floating_point()
        return called, labels.long() if whole else labels


@dataclass(frozen=True)
class CompressionPlan:
    """Which layers stay.

    ``ratio``: values in the parameters of all layers to those of the layers that stay. ``loss_before``, ``loss_after``:
    mean loss of the samples of the ranking, by the layers run one by one.
    """

    analyzer: LayerAnalyzer = field(repr=False)
    keep: tuple[int, ...]
    ratio: float
    loss_before: float
    loss_after: float

    @property
    def kept(self) -> tuple[str, ...]:
        """The paths of the layers that stay."""
        return tuple(self.analyzer.layers.names[layer] for layer in self.keep)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of the layers that go."""
        return tuple(name for layer, name in enumerate(self.analyzer.layers.names) if layer not in self.keep)

    def apply(self) -> nn.Module:
        """A smaller model; the one that was analysed stays as it is.

        Raises ConfigError where it would not do what the layers did one by one.
        """
        layers = self.analyzer.layers
        with layers:
            return layers.without(
                [layer for layer in layers.layers if layer not in self.keep], self.analyzer._batches[0]
            )

    def report(self, *, rounds: int = 5) -> dict[str, Any]:
        """What is lost and won on the samples of the ranking: metrics, loss, parameters, and how much faster it runs.

        ``faster``: the median over rounds, each model in turn, of the time of the first batch before and after.
        """
        layers, batches, task = self.analyzer.layers, self.analyzer._batches, self.analyzer.config.judged_by
        smaller = self.apply()
        labels = [batch.labels for batch in batches]
        models = {"before": layers.model, "after": smaller}
        with torch.no_grad():
            metrics = {
                name: task.metrics([batch.inputs.call(model) for batch in batches], labels)
                for name, model in models.items()
            }
            ratios = []
            for _ in range(rounds + 1):
                spent = {name: _seconds(model, batches[0].inputs) for name, model in models.items()}
                ratios.append(spent["before"] / spent["after"])
        return {
            "layers": len(layers.layers),
            "kept": list(self.kept),
            "left_out": list(self.left_out),
            "ratio": round(self.ratio, 3),
            "loss": {"before": self.loss_before, "after": self.loss_after},
            "metrics": metrics,
            "parameters": {name: parameters_of([model]) for name, model in models.items()},
            # The first round warms up.
            "faster": round(median(ratios[1:]), 3),
            "samples": sum(batch.samples for batch in batches),
        }

    def save(self, folder: Path | str, *, onnx: bool = False, report: Mapping[str, Any] | None = None) -> None:
        """Write the smaller model into a folder, whole or not at all, with ``compression.json``, its report.

        A transformers model is written as such, with its tokenizer, and opened again to see that it is the same;
        of others, or where that cannot be, the weights are written as model.safetensors: ``apply`` makes the module.
        """
        smaller, tokenizer = self.apply(), self.analyzer._tokenizer
        with new_folder(Path(folder), COMPRESSED) as new:
            opens = save_pretrained(smaller, self.analyzer._batches[0].inputs, new)
            if not opens:
                save_weights(smaller, new / "model.safetensors")
            elif hasattr(tokenizer, "save_pretrained"):
                tokenizer.save_pretrained(new)  # type: ignore[union-attr]
            if onnx:
                self.export(new / "model.onnx")
            told = {"schema_version": 1, **(report or self.report()), "opens_with_transformers": opens}
            write_json(new / "compression.json", told)

    def export(self, path: Path | str, *, inputs: Mapping[str, Any] | Tensor | None = None) -> float:
        """Write the smaller model as ONNX, whole or not at all, and compare it with torch in onnxruntime.

        ``inputs``: an example; by default the first batch of the ranking. Returns the largest difference. Raises
        ParityError where that is too large.
        """
        example = self.analyzer._batches[0].inputs
        if inputs is not None:
            example = Inputs((), dict(inputs)) if isinstance(inputs, Mapping) else Inputs((inputs,))
        return export_onnx(self.apply(), example, Path(path))


def _seconds(model: nn.Module, inputs: Inputs) -> float:
    started = perf_counter()
    inputs.call(model)
    return perf_counter() - started


def _largest(order: Sequence[int], sizes: Sequence[int], most: float) -> tuple[int, ...]:
    """Those of an order, from its first, that still fit into ``most``, in the order of the model."""
    kept: list[int] = []
    for layer in order:
        if sum(sizes[each] for each in kept) + sizes[layer] <= most:
            kept.append(layer)
    return tuple(sorted(kept))


def _one_of(kinds: type[StrEnum], value: str, what: str) -> Any:
    try:
        return kinds(str(value))
    except ValueError:
        raise ConfigError(f"unknown {what} {str(value)!r}; known: {', '.join(kinds)}") from None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) for each in value)


def _tokens_of(called: Inputs) -> Tensor | None:
    """The tokens of a batch as labels, without the padding."""
    tokens = called.kwargs.get("input_ids", called.args[0] if called.args else None)
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return None
    mask = called.kwargs.get("attention_mask")
    return tokens.clone() if mask is None else tokens.masked_fill(mask == 0, IGNORED)


def _as_tensor(labels: Any) -> Any:
    """Labels in a list or an array as a tensor; what cannot be one as it is."""
    if isinstance(labels, Tensor | Mapping):
        return labels
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return labels


def _to(value: Any, device: torch.device) -> Any:
    """A value with all its tensors and arrays on the device."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _to(each, device) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to(each, device) for each in value)
    return value
