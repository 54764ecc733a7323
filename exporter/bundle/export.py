"""Writes a Bundle from a checkpoint: engines checked against torch, items, selector, manifest; whole or not at all."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fathom.artefacts import BUNDLE
from fathom.distribution import fathom_commit, version
from fathom.errors import ConfigError, PlanError
from fathom.exporter.bundle.derive import write_file, write_manifest
from fathom.exporter.engines.extension_parity import extension_error
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.parity import DepthParity, check_parity, measure_parity
from fathom.exporter.engines.precision import Bits, Precision, reduce_engines, same_bits
from fathom.exporter.engines.reduced_quality import MAX_LOSS, check_losses, evaluate_engines, losses
from fathom.exporter.engines.segments import (
    CONTEXT_FILE,
    depth_segments,
    export_extension,
    export_segments,
    extension_file,
)
from fathom.exporter.planning.compare import StrategyEvidence
from fathom.exporter.planning.heal import check_dataset
from fathom.exporter.planning.plan import DepthPlan
from fathom.files import new_folder
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_vectors import ItemPrecision, ItemVectors
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    POPULARITY_FILE,
    SELECTOR_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    DepthInfo,
    Extension,
    Manifest,
    MetricInterval,
    ModelInfo,
    Provenance,
)
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import SelectorTables, measure_all
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import EvaluationReport, evaluate_model
from fathom.training.scorer import depth_name
from fathom.training.splits import Split, split

#: The selector needs quantiles of the training histories; more of them do not move those.
SELECTOR_HISTORIES = 20_000

Progress = Callable[[str], None]


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    out: Path,
    *,
    name: str,
    plan: DepthPlan | None = None,
    evidence: StrategyEvidence | None = None,
    report: EvaluationReport | None = None,
    precision: Precision = "fp32",
    layer_bits: Mapping[int, Bits] | None = None,
    item_precision: ItemPrecision = "fp32",
    max_loss: float = MAX_LOSS,
    every_length: bool = False,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Write the bundle folder and return its manifest; an existing ``out`` is replaced as a whole.

    ``plan``: refuse a checkpoint that was not healed for it. ``evidence``: what ``compare`` found. ``report``: the
    checkpoint's evaluation on the test items, measured here when None. ``precision``: of the engines; with ``mixed``
    each layer has its own, ``layer_bits``. ``item_precision``: of the item vectors, which engines read and answers are
    found among. ``max_loss``: the share of a depth's NDCG@10 that fewer bits may cost.
    ``every_length``: check parity at each history length. The same checkpoint gives the same bytes, and so the same
    version; only ``created`` differs (SOURCE_DATE_EPOCH sets it). Raises ArtefactError for another dataset, PlanError,
    and ParityError when an engine disagrees with torch, or fewer bits cost more than is allowed: then nothing is
    written.
    """
    check_dataset(checkpoint, dataset)
    executed = _plan_of(checkpoint, plan)
    cut = split(dataset, checkpoint.config.split)
    progress("tracing the engines")
    plain = export_segments(checkpoint.model)
    engines = _optional_exits(plain)
    parity = _checked_parity(checkpoint, engines, cut, every_length=every_length, progress=progress)
    if report is None:
        report = evaluate_model(checkpoint.model, dataset, cut, baselines=(), progress=progress)
    items = item_vectors(checkpoint.model, item_precision)
    if precision != "fp32":
        progress(f"storing the engines in {precision}")
        bits = _bits(checkpoint, precision, layer_bits)
        engines = _optional_exits(reduce_engines(checkpoint.model, plain, bits, cut.train))
    lost: Mapping[int, MetricInterval] = {}
    if (precision, item_precision) != ("fp32", "fp32"):
        parity = measure_parity(checkpoint.model, engines, cut.test.histories, items=items, every_length=every_length)
        full, report = report, evaluate_engines(checkpoint.model, engines, items, dataset, cut, progress)
        lost = losses(full, report, checkpoint.model.depths)
        check_losses(lost, max_loss, precision if item_precision == "fp32" else f"{precision}, items {item_precision}")
    extended: Mapping[str, bytes] = {}
    extension = None
    if precision == "fp32":
        extended, extension = _checked_extension(checkpoint, engines, items, cut, progress)
    progress("fitting the selector")
    files = engines | dict(extended) | _item_files(checkpoint, items, cut)
    manifest = Manifest(
        name=name,
        version="",
        created=_created(),
        strategy=executed.strategy,
        strategy_evidence=evidence or {},
        precision=precision,
        layer_precision=dict(layer_bits or {}) if precision == "mixed" else {},
        format="onnx",
        model=_model_info(checkpoint),
        items=len(checkpoint.item_ids),
        item_precision=item_precision,
        depths=_depth_infos(executed, parity, report, lost),
        extension=extension,
        files={},
        source=_source(checkpoint, executed),
    )
    progress("writing the bundle")
    return _write(out, manifest, files)


def _optional_exits(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {path: with_optional_exit(data) for path, data in files.items()}


def _checked_parity(
    checkpoint: Checkpoint, engines: Mapping[str, bytes], cut: Split, *, every_length: bool, progress: Progress
) -> dict[int, DepthParity]:
    text = "comparing the engines with torch"
    progress(text)
    parity = measure_parity(
        checkpoint.model,
        engines,
        cut.test.histories,
        every_length=every_length,
        progress=lambda done, total: progress(f"{text}: {done:,} of {total:,}"),
    )
    check_parity(parity)
    return parity


def _checked_extension(
    checkpoint: Checkpoint, engines: Mapping[str, bytes], items: ItemVectors, cut: Split, progress: Progress
) -> tuple[dict[str, bytes], Extension | None]:
    """The second form of a chain, checked against the first."""
    progress("tracing the engines' second form")
    files = _optional_exits(export_extension(checkpoint.model))
    if not files:
        return {}, None
    config = checkpoint.model.config
    segments = {depth: extension_file(depth) for depth in sorted(config.paths)}
    error = extension_error(checkpoint.model, engines, files, items, cut.test.histories)
    return files, Extension(span=config.span, context=CONTEXT_FILE, segments=segments, max_abs_error=error)


def _write(out: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    with new_folder(out, BUNDLE) as folder:
        entries = {path: write_file(folder, path, data) for path, data in sorted(files.items())}
        made = write_manifest(folder, manifest.model_copy(update={"files": entries}))
        Bundle.open(folder).close()  # what the runtime would refuse must not appear under its name
    return made


def _plan_of(checkpoint: Checkpoint, plan: DepthPlan | None) -> DepthPlan:
    config = checkpoint.model.config
    executed = DepthPlan(config.strategy, config.layers, config.paths)
    if plan is not None and dict(plan.paths) != dict(executed.paths):
        raise PlanError(f"the checkpoint does not execute this {plan.strategy} plan; run `fathom heal` with it first")
    return executed


def _item_files(checkpoint: Checkpoint, vectors: ItemVectors, cut: Split) -> dict[str, bytes]:
    """Catalogue, vectors, popularity and the selector that is fitted to them."""
    catalogue = {"ids": checkpoint.item_ids, "titles": checkpoint.titles, "categories": checkpoint.categories}
    popularity = np.bincount(cut.train.items, minlength=len(vectors)).astype(np.int64)
    longest = checkpoint.model.config.max_history
    transitions = transition_entropy(cut.train, len(vectors))
    tables = SelectorTables.build(popularity, vectors, transitions)
    selector = ComplexityModel.fit(measure_all(_requests(cut.train, longest), tables))
    return {
        CATALOGUE_FILE: _compact_json(catalogue),
        VECTORS_FILE: _npy(vectors.rows),
        POPULARITY_FILE: _npy(popularity),
        TRANSITIONS_FILE: _npy(transitions),
        SELECTOR_FILE: _compact_json(selector.to_json()),
    }


def transition_entropy(train: Sequences, items: int) -> NDArray[np.float32]:
    """Entropy in nats of what followed each item, (items,); NaN for an item that nothing followed."""
    follows = train.owners[1:] == train.owners[:-1]
    pairs = train.items[:-1][follows].astype(np.int64) * items + train.items[1:][follows]
    known, counts = np.unique(pairs, return_counts=True)
    first = known // items
    total = np.bincount(first, weights=counts, minlength=items)
    spread = np.bincount(first, weights=counts * np.log(counts), minlength=items)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(total > 0, np.log(total) - spread / total, np.nan)
    return np.maximum(entropy, 0.0).astype(np.float32)


def _requests(train: Sequences, longest: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64] | None]]:
    """Training histories as requests would bring them: not empty, cut to the model's longest."""
    users = np.flatnonzero(train.lengths)
    if len(users) > SELECTOR_HISTORIES:
        users = users[np.linspace(0, len(users) - 1, SELECTOR_HISTORIES).round().astype(np.int64)]
    for user in users.tolist():
        times = train.times(user)
        yield train[user][-longest:], None if times is None else times[-longest:]


def _model_info(checkpoint: Checkpoint) -> ModelInfo:
    config = checkpoint.model.config
    return ModelInfo(
        block=config.block,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        max_history=config.max_history,
        uses_timestamps=checkpoint.model.uses_timestamps,
    )


def _bits(
    checkpoint: Checkpoint, precision: Precision, layer_bits: Mapping[int, Bits] | None
) -> Mapping[int, Bits] | Literal["fp16"]:
    if precision == "mixed":
        if layer_bits is None:
            raise ConfigError("mixed precision needs the bits of each layer")
        return layer_bits
    assert precision != "fp32"
    return precision if precision == "fp16" else same_bits(checkpoint.model, precision)


def _depth_infos(
    plan: DepthPlan, parity: Mapping[int, DepthParity], report: EvaluationReport, lost: Mapping[int, MetricInterval]
) -> dict[int, DepthInfo]:
    infos = {}
    for depth, segments in depth_segments(plan.paths).items():
        measured = report.systems[depth_name(depth)].metrics
        infos[depth] = DepthInfo(
            segments=tuple(segment.file for segment in segments),
            layers=plan.paths[depth],
            parity=parity[depth].for_manifest(),
            quality={metric: MetricInterval(**value.as_dict()) for metric, value in measured.items()},
            loss=lost.get(depth),
        )
    return infos


def _source(checkpoint: Checkpoint, plan: DepthPlan) -> Provenance:
    return Provenance(
        dataset=checkpoint.config.dataset,
        checkpoint=checkpoint.sha256,
        plan=plan.sha256,
        fathom=version(),
        commit=fathom_commit(),
        split=checkpoint.config.split,
    )


def _created() -> str:
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now(UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"SOURCE_DATE_EPOCH={seconds!r} is not a time in whole seconds; correct or unset it"
        ) from None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _compact_json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
