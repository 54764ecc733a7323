"""Writes a Bundle from a checkpoint: engines checked against torch, items, selector, manifest; whole or not at all."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fathom.distribution import fathom_commit, version
from fathom.errors import ConfigError, PlanError
from fathom.exporter.bundle.derive import write_bundle
from fathom.exporter.bundle.item_files import (
    context_files,
    counting_files,
    item_files,
    request_time_files,
    selector_file,
    text_files,
)
from fathom.exporter.bundle.selector_fit import fit_complexity
from fathom.exporter.bundle.text_fit import fit_text_encoder
from fathom.exporter.engines.adapted import ADAPTED, check_adapted, packed
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.incremental_parity import incremental_error
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.parity import DepthParity, check_parity, measure_parity
from fathom.exporter.engines.precision import Bits, Precision, reduce_engines, same_bits
from fathom.exporter.engines.reduced_quality import MAX_LOSS, check_losses, evaluate_engines, losses
from fathom.exporter.engines.segments import CONTEXT_FILE, export_extension, export_segments, extension_file, step_file
from fathom.exporter.planning.compare import StrategyEvidence
from fathom.exporter.planning.heal import check_dataset
from fathom.exporter.planning.plan import DepthPlan
from fathom.runtime.item_vectors import ItemPrecision
from fathom.runtime.manifest import (
    LONGEST_TYPE_BYTES,
    ContextInfo,
    CountingInfo,
    DepthInfo,
    Extension,
    Manifest,
    MetricInterval,
    ModelInfo,
    Provenance,
    RequestTimeInfo,
    TextInfo,
)
from fathom.runtime.text_encoder import TextEncoder
from fathom.training.checkpoint import Checkpoint
from fathom.training.context import Context
from fathom.training.context_fit import fit_context
from fathom.training.counting import CountingExit, fit_counting
from fathom.training.dataset import Contexts, Dataset
from fathom.training.evaluate import EvaluationReport, evaluate_model
from fathom.training.model import ElasticModel
from fathom.training.request_time import RequestTime
from fathom.training.request_time_fit import fit_request_time
from fathom.training.scorer import depth_name
from fathom.training.splits import Split, split


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    out: Path,
    *,
    name: str,
    plan: DepthPlan | None = None,
    evidence: StrategyEvidence | None = None,
    precision: Precision = "fp32",
    layer_bits: Mapping[int, Bits] | None = None,
    item_precision: ItemPrecision = "fp32",
    reference: Checkpoint | None = None,
    max_loss: float = MAX_LOSS,
    every_length: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the bundle folder and return its manifest; an existing ``out`` is replaced as a whole.

    The counting exit with its weight beside each depth, and what the time and context of a request change, are tuned on
    validation items. ``plan``: refuse a checkpoint that was not healed for it. ``evidence``: what ``compare`` found.
    ``layer_bits``: of each layer, for ``mixed``. ``item_precision``: of the vectors that engines read and answers are
    found among. ``reference``: for ``int4+lora``, the network before it was healed, whose quality in fp32 counts.
    ``max_loss``: share of a depth's NDCG@10 that fewer bits may cost. ``every_length``: check parity at each history
    length. The same checkpoint gives the same bytes and version; only ``created`` differs (SOURCE_DATE_EPOCH sets it).
    Raises ArtefactError for another dataset, PlanError, ConfigError for a checkpoint without what a precision needs,
    and ParityError when an engine disagrees with torch, or fewer bits cost too much: then nothing is written.
    """
    check_dataset(checkpoint, dataset)
    executed = _executed(checkpoint, plan)
    storage = _Storage(precision, layer_bits, item_precision, max_loss)
    if precision == ADAPTED:
        check_adapted(checkpoint, reference, dataset)
    elif reference is not None:
        raise ConfigError(f"a reference is for {ADAPTED}: {precision} is measured against the checkpoint itself")
    else:
        checkpoint = replace(checkpoint, model=checkpoint.model.merged())
    work = _Export(checkpoint, dataset, split(dataset, checkpoint.config.split), every_length, progress, reference)
    made = work.engines(storage)
    incremental, extension = work.incremental(made.engines, storage) if storage.is_exact else ({}, None)
    items, tables = item_files(checkpoint, made.engines.vectors, work.cut.train)
    complexity = fit_complexity(
        made.engines, checkpoint.model.config, tables, work.counting, work.cut, progress=progress
    )
    selector, counts = selector_file(complexity), counting_files(work.counting.tables)
    files = {**made.engines.files, **incremental, **items, **selector, **counts}
    manifest = _manifest(name, checkpoint, executed, evidence or {}, storage, made, extension)
    learned: dict[str, Any] = {"counting": _counting_info(work.counting, made.report, dataset)}
    progress("fitting the text encoder")
    if (fitted := work.text_encoder(made.engines)) is not None:
        encoder, learned["text"] = fitted
        files |= text_files(encoder)
    if (timed := work.request_time) is not None:
        learned["request_time"] = RequestTimeInfo(gain=MetricInterval(**timed.gain.as_dict()))
        files |= request_time_files(timed)
    if (contexts := dataset.sequences.contexts) is not None:
        learned["context"] = _context_info(contexts, work.context)
        files |= {} if work.context is None else context_files(work.context)
    progress("writing the bundle")
    return write_bundle(out, manifest.model_copy(update=learned), sorted(files.items()))


@dataclass(frozen=True)
class _Storage:
    """The bits that weights and item vectors are stored in, and the share of NDCG@10 that fewer of them may cost."""

    precision: Precision
    layer_bits: Mapping[int, Bits] | None
    items: ItemPrecision
    max_loss: float

    def __str__(self) -> str:
        return self.precision if self.items == "fp32" else f"{self.precision}, items {self.items}"

    @property
    def is_exact(self) -> bool:
        """Whether engines give what torch gives."""
        return self.precision in ("fp32", ADAPTED)

    def pack(self, engine: bytes) -> bytes:
        """An exact engine with its weights as they are stored."""
        return packed(engine) if self.precision == ADAPTED else engine

    def bits(self, model: ElasticModel) -> Mapping[int, Bits] | Literal["fp16"]:
        """Of each layer."""
        if self.precision == "fp16":
            return "fp16"
        if self.precision == "mixed":
            if self.layer_bits is None:
                raise ConfigError("mixed precision needs the bits of each layer")
            return self.layer_bits
        assert self.precision != ADAPTED, "its weights were rounded before they were healed"
        return same_bits(model, self.precision)


@dataclass(frozen=True)
class _Measured:
    """Engines, their parity with torch, their quality on the test items, and by depth what fewer bits lose of it."""

    engines: EngineSet
    parity: Mapping[int, DepthParity]
    report: EvaluationReport
    lost: Mapping[int, MetricInterval]

    def depth(self, depth: int, plan: DepthPlan) -> DepthInfo:
        """As the manifest keeps it."""
        return DepthInfo(
            segments=self.engines.segments(depth),
            layers=plan.paths[depth],
            parity=self.parity[depth].for_manifest(),
            quality=_quality(self.report, depth),
            loss=self.lost.get(depth),
        )


@dataclass(frozen=True)
class _Export:
    """The steps of an export that need the model and the data."""

    checkpoint: Checkpoint
    dataset: Dataset
    cut: Split
    every_length: bool
    progress: Callable[[str], None]
    reference: Checkpoint | None

    @cached_property
    def counting(self) -> CountingExit:
        """Depth 0, tuned on validation items."""
        return fit_counting(self.checkpoint.model, self.cut, self.dataset.n_items, progress=self.progress)

    @cached_property
    def request_time(self) -> RequestTime | None:
        """What the time of a request changes, where it helps on validation items."""
        checkpoint = self.checkpoint
        return fit_request_time(checkpoint.model, checkpoint.config.train.train, self.cut, progress=self.progress)

    @cached_property
    def context(self) -> Context | None:
        """What the context of a request changes, where it helps on validation items."""
        model, settings = self.checkpoint.model, self.checkpoint.config.train.train
        return fit_context(model, settings, self.cut, self.request_time, progress=self.progress)

    def text_encoder(self, engines: EngineSet) -> tuple[TextEncoder, TextInfo] | None:
        """What places new items by their texts among these engines' items."""
        made, train = self.checkpoint, self.cut.train
        popularity = np.bincount(train.items, minlength=len(made.item_ids)).astype(np.int64)
        return fit_text_encoder(made.titles, made.categories, np.asarray(engines.vectors), popularity)

    def engines(self, storage: _Storage) -> _Measured:
        """The engines as they are stored; those in fp32 are checked first, and any others measured against them."""
        self.progress("tracing the engines")
        traced = export_segments(self.checkpoint.model)
        exact = self._exact(traced.converted(storage.pack).converted(with_optional_exit))
        if str(storage) == "fp32":
            return exact
        found = exact if str(storage) == ADAPTED else self._reduced(traced, exact, storage)
        full = exact.report
        if self.reference is not None:
            self.progress("evaluating the network before it was healed")
            reference = replace(self.reference, model=self.reference.model.merged())
            full = replace(self, checkpoint=reference)._report()
        lost = losses(full, found.report, self.checkpoint.model.depths)
        check_losses(lost, storage.max_loss, str(storage))
        return replace(found, lost=lost)

    def _exact(self, engines: EngineSet) -> _Measured:
        text = "comparing the engines with torch"
        self.progress(text)
        parity = self._parity(engines, lambda done, total: self.progress(f"{text}: {done:,} of {total:,}"))
        check_parity(parity)
        return _Measured(engines, parity, self._report(), {})

    def _report(self) -> EvaluationReport:
        return evaluate_model(
            self.checkpoint.model,
            self.dataset,
            self.cut,
            counting=self.counting,
            request_time=self.request_time,
            context=self.context,
            baselines=(),
            progress=self.progress,
        )

    def _reduced(self, traced: EngineSet, exact: _Measured, storage: _Storage) -> _Measured:
        model, engines = self.checkpoint.model, exact.engines
        max_history = model.config.max_history
        if not storage.is_exact:
            self.progress(f"storing the engines in {storage.precision}")
            reduced = reduce_engines(traced, storage.bits(model), self.cut.train, max_history)
            engines = reduced.converted(with_optional_exit)
        engines = replace(engines, vectors=item_vectors(model, storage.items))
        parity = self._parity(engines)
        report = evaluate_engines(
            engines,
            self.dataset,
            self.cut,
            self.counting,
            self.request_time,
            self.context,
            max_history=max_history,
            progress=self.progress,
        )
        return _Measured(engines, parity, report, {})

    def _parity(
        self, engines: EngineSet, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> dict[int, DepthParity]:
        histories = self.cut.test.histories
        return measure_parity(
            self.checkpoint.model, engines, histories, every_length=self.every_length, progress=progress
        )

    def incremental(self, engines: EngineSet, storage: _Storage) -> tuple[Mapping[str, bytes], Extension | None]:
        """The engines for incremental inference, checked against those for whole histories; none without a chain."""
        self.progress("tracing the engines for incremental inference")
        model = self.checkpoint.model
        files = export_extension(model, storage.pack)
        if not files:
            return {}, None
        error = incremental_error(model, engines, files, self.cut.test.histories)
        return files, Extension(
            span=model.config.span,
            context=CONTEXT_FILE,
            segments={depth: extension_file(depth) for depth in model.depths},
            steps={depth: step_file(depth) for depth in model.depths},
            max_abs_error=error,
        )


def _executed(checkpoint: Checkpoint, plan: DepthPlan | None) -> DepthPlan:
    """The plan that a checkpoint executes; PlanError where another one is asked for."""
    config = checkpoint.model.config
    executed = DepthPlan(config.strategy, config.layers, config.paths)
    if plan is not None and dict(plan.paths) != dict(executed.paths):
        raise PlanError(f"the checkpoint does not execute this {plan.strategy} plan; run `fathom heal` with it first")
    return executed


def _manifest(
    name: str,
    checkpoint: Checkpoint,
    plan: DepthPlan,
    evidence: StrategyEvidence,
    storage: _Storage,
    made: _Measured,
    extension: Extension | None,
) -> Manifest:
    """All but the files, which are listed, and the version, which follows, when they are written."""
    config = checkpoint.model.config
    shape = {key: getattr(config, key) for key in ("block", "layers", "width", "heads", "max_history")}
    return Manifest(
        name=name,
        version="",
        created=_created(),
        strategy=plan.strategy,
        strategy_evidence=evidence,
        precision=storage.precision,
        layer_precision=dict(storage.layer_bits or {}) if storage.precision == "mixed" else {},
        format="onnx",
        model=ModelInfo(**shape, uses_timestamps=checkpoint.model.uses_timestamps),
        items=len(checkpoint.item_ids),
        item_precision=storage.items,
        depths={depth: made.depth(depth, plan) for depth in plan.depths},
        extension=extension,
        files={},
        source=Provenance(
            dataset=checkpoint.config.dataset,
            checkpoint=checkpoint.sha256,
            plan=plan.sha256,
            fathom=version(),
            commit=fathom_commit(),
            split=checkpoint.config.split,
        ),
    )


def _counting_info(counting: CountingExit, report: EvaluationReport, dataset: Dataset) -> CountingInfo:
    return CountingInfo(
        **asdict(counting.tables.settings),
        weights=counting.weights,
        quality=_quality(report, 0),
        event_weights=event_weights(dataset),
    )


def _context_info(contexts: Contexts, learned: Context | None) -> ContextInfo:
    """Of all features of the data, whether they change anything or not: what may be sent stays the same."""
    values = {} if learned is None else learned.values
    gain = None if learned is None else MetricInterval(**learned.gain.as_dict())
    return ContextInfo(features={name: len(values.get(name, ())) for name in contexts.values}, gain=gain)


def event_weights(dataset: Dataset) -> dict[str, float]:
    """Event type -> what an event of it weighs, of those that a server can be sent; none where all weigh the same."""
    types = {} if dataset.sequences.weights is None else dataset.meta.get("types", {})
    return {name: each["weight"] for name, each in types.items() if len(name.encode()) <= LONGEST_TYPE_BYTES}


def _quality(report: EvaluationReport, depth: int) -> dict[str, MetricInterval]:
    metrics = report.systems[depth_name(depth)].metrics
    return {metric: MetricInterval(**value.as_dict()) for metric, value in metrics.items()}


def _created() -> str:
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now(UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"SOURCE_DATE_EPOCH={seconds!r} is not a time in whole seconds; correct or unset it"
        ) from None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
