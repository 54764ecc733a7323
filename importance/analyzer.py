"""Ranks the layers of any torch model and makes it smaller: the front of ``importance`` for Python.

analyzer = create_analyzer(task_type="classification", modality_type="text")
analyzer.load_model(model)
ranking = analyzer.analyze_importance(loader)
smaller = analyzer.generate_compression_plan(target_ratio=2.5).apply()
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError
from fathom.importance.choice import GRADED_MODELS, Graded, choose_methods, forward_seconds
from fathom.importance.compression import CompressionPlan, Measured
from fathom.importance.inputs import Inputs
from fathom.importance.interface import ImportanceMethod
from fathom.importance.lattice.lattice import (
    Lattice,
    LatticeProgress,
    masks_on_the_way,
    measure_lattice,
    random_orders,
)
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.modalities import ModalityShares, modality_shares
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.collation import Collation, Dense, Graphs
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.models.stacks import Stack
from fathom.importance.rank import Progress, rank_layers
from fathom.importance.registry import ALL, load_methods
from fathom.importance.search import Make, Target, find_plan
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
    ``samples``: how many samples of the loader are measured at most. ``budget_seconds``: only those of the methods run
    that came closest to the truth together on other models, and should take no longer on one core; see ``choice``.
    """

    model_name: str = ""
    task_type: TaskType = TaskType.CLASSIFICATION
    modality_type: Modality = Modality.TEXT
    analysis_methods: tuple[str, ...] = ("ablation", "block_influence", "gradient", "fisher")
    task: Task | None = None
    samples: int = 256
    seed: int = 0
    budget_seconds: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_type", _one_of(TaskType, self.task_type, "task"))
        object.__setattr__(self, "modality_type", _one_of(Modality, self.modality_type, "modality"))
        if self.samples < 2:
            raise ConfigError(f"samples is {self.samples}; a ranking needs at least 2")
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise ConfigError(f"budget_seconds is {self.budget_seconds:g}; it must be above 0")

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
    unknown = set(more) - {"task", "samples", "seed", "budget_seconds"}
    if unknown:
        raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; known: task, samples, seed, budget_seconds")
    return LayerAnalyzer(
        AnalysisConfig(model_name, task_type, modality_type, **given, **more)  # type: ignore[arg-type]
    )


@dataclass
class LayerAnalyzer:
    """Ranks the layers of one model; ``load_model`` comes first."""

    config: AnalysisConfig
    ranking: LayerRanking | None = None
    _layers: ModuleLayers | None = field(default=None, repr=False)
    _tokenizer: Callable[..., Any] | None = field(default=None, repr=False)
    _batches: list[ModuleBatch] = field(default_factory=list, repr=False)
    #: The sha256 of what was read.
    _samples: str = field(default="", repr=False)

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

    def analyze_importance(
        self, loader: Iterable[Any], *, progress: Progress | None = None, lattice: Lattice | None = None
    ) -> LayerRanking:
        """Rank all layers by the methods of the config.

        ``loader``: batches, each a dict of tensors by the names of the model's arguments with ``labels``, or (inputs,
        labels) with inputs a tensor, such a dict or texts. Labels may be left out for generation. ``lattice``: of the
        same samples, to grade the methods by; see ``measure_lattice``. Raises ConfigError for what does not fit the
        task, DataError where there is no sample.
        """
        methods = load_methods(self.config.analysis_methods)
        each = any(getattr(method, "per_sample_gradients", False) for method in methods.values())
        self.ranking = None
        with self.layers:
            self._batches = self._read(loader, GRADIENT_VALUES if each else None)
            if lattice is not None and not self._measured_on().items() <= lattice.about.items():
                raise ConfigError("the lattice was measured on another model or other samples; measure it again")
            if self.config.budget_seconds is not None:
                methods = self._within_budget(methods, self.config.budget_seconds)
            ranking = rank_layers(
                self.layers,
                self._batches,
                methods,
                seed=self.config.seed,
                skip_inapplicable=ALL in self.config.analysis_methods,
                progress=progress,
                lattice=lattice,
            )
        self.ranking = replace(ranking, layer_names=self.layers.names)
        return self.ranking

    def measure_lattice(
        self,
        loader: Iterable[Any],
        out: Path,
        *,
        orders: int = 0,
        progress: Callable[[LatticeProgress], None] = lambda _: None,
    ) -> Lattice:
        """Measure the loss with every subset of the layers, the truth that methods are graded by, and write it.

        ``loader``: as for ``analyze_importance``. ``out``: a folder; a lattice that it holds is not measured again, and
        an interrupted one goes on where it was. ``orders``: only the subsets on the way from no layer to all in so many
        random orders; 0 measures all of them. Raises ConfigError where all are too many.
        """
        with self.layers:
            batches = self._read(loader, None)
            chosen = random_orders(len(self.layers.layers), orders, seed=self.config.seed)
            about = {"model": self.config.model_name, **self._measured_on(), "orders": chosen}
            if (out / "lattice.json").exists() and (kept := Lattice.load(out)).about == about:
                return kept
            masks = masks_on_the_way(chosen) if orders else None
            return measure_lattice(self.layers, batches, out, masks=masks, about=about, progress=progress)

    def analyze_modalities(self, loader: Iterable[Any], modalities: Mapping[str, Sequence[str]]) -> ModalityShares:
        """How much the answers and each layer depend on which modality, see ``modalities.modality_shares``.

        ``loader``: as for ``analyze_importance``, with batches of two samples or more, by the names of the model's
        arguments. ``modalities``: name -> these names, as {"sound": ["input_features"], "text": ["input_ids"]}.
        """
        return modality_shares(self.layers, list(self.batches_of(loader)), modalities, seed=self.config.seed)

    def forward_seconds(self) -> float:
        """Seconds of one pass of the ranking's samples through all layers on one core."""
        with self.layers:
            return forward_seconds(self.layers, self._batches)

    def generate_compression_plan(
        self,
        target_ratio: float | None = None,
        *,
        memory_mb: float | None = None,
        latency_ms: float | None = None,
        min_quality: float | None = None,
        make: Make = CompressionPlan.apply,
    ) -> CompressionPlan:
        """Which layers to keep so that the model reaches one target, see ``search.Target``; by default a ratio of 2.

        Candidates are the best layers by each method and by their consensus, the first layers, and what is left when
        one layer after another goes; the plan has the candidate with the least loss on the samples of the ranking.
        ``make``: makes a plan's model where quality is measured; if it also heals, plans are compared after healing.
        The plan does not hold that model: ``make`` may keep it, or ``heal`` makes it again.
        Raises ConfigError before ``analyze_importance`` and for a target that no plan reaches.
        """
        if target_ratio is memory_mb is latency_ms is min_quality is None:
            target_ratio = 2.0
        return self.plan_for(Target(target_ratio, memory_mb, latency_ms, min_quality), make)

    def plan_for(self, target: Target, make: Make = CompressionPlan.apply) -> CompressionPlan:
        """The same for a target that is made already."""
        if self.ranking is None:
            raise ConfigError("no ranking: call analyze_importance first")
        return find_plan(Measured(self.layers, self._batches, self._tokenizer), self.ranking, target, make)

    def batches_of(self, loader: Iterable[Any]) -> Iterator[tuple[Inputs, Any]]:
        """Inputs and labels of what a loader gives, once."""
        for given in loader:
            yield self._split(given)

    def _measured_on(self) -> dict[str, Any]:
        """What a lattice belongs to: the model's weights, its layers, and the samples."""
        weights = sha256()
        _feed(weights, self.layers.model.state_dict())
        names = list(self.layers.names)
        return {"layer_names": names, "weights": weights.hexdigest(), "samples": self._samples}

    def _within_budget(self, methods: Mapping[str, ImportanceMethod], seconds: float) -> dict[str, ImportanceMethod]:
        """Those that predict best within a time on models whose state changes its shape as this one's does, or not."""
        stages = self._batches[0].real is None
        known = [model for model in Graded.load(GRADED_MODELS) if model.stages == stages]
        if not known:
            raise ConfigError("no model of this kind has been graded; name the methods to run, without a budget")
        chosen = choose_methods(known, methods, forward_seconds(self.layers, self._batches), seconds)
        return {name: methods[name] for name in chosen}

    def _read(self, loader: Iterable[Any], values: int | None) -> list[ModuleBatch]:
        """The samples of a loader, in batches whose gradients have at most so many values."""
        layers, collation, left = self.layers, self.layers.collation, self.config.samples
        batches: list[ModuleBatch] = []
        digest = sha256()
        for given in loader:
            inputs, labels = self._split(given)
            count = min(collation.samples(inputs), left)
            _feed(digest, (inputs.args, inputs.kwargs, labels, count))
            if not layers.layers and count:
                # Once, to know how large the layers are.
                layers.batch(collation.part(inputs, 0, 1), collation.part_of_labels(labels, 0, 1))
            size = count if values is None else max(1, min(count, values // max(1, layers.parameter_count)))
            for ends in pairwise([*range(0, count, size), count]):
                batches.append(layers.batch(collation.part(inputs, *ends), collation.part_of_labels(labels, *ends)))
            left -= count
            if not left:
                break
        self._samples = digest.hexdigest()
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
        task = self.layers.task.name
        if labels is None and task == TaskType.GENERATION:
            labels = _tokens_of(called)
        if labels is None:
            raise ConfigError(
                f"the loader gives no labels, which {task} needs: give (inputs, labels), or labels by name"
            )
        labels = _to(_as_tensor(labels), device)
        whole = isinstance(labels, Tensor) and not labels.is_floating_point()
        return called, labels.long() if whole else labels


def _feed(digest: Any, value: Any) -> None:
    """Add all tensors, names and plain values of something nested to a hash."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name, each in value.items():
            digest.update(str(name).encode())
            _feed(digest, each)
    elif isinstance(value, tuple | list):
        for each in value:
            _feed(digest, each)
    else:
        digest.update(repr(value).encode())


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
