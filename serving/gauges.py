"""Gauges of the server's state, read whenever its metrics are scraped."""

from collections.abc import Iterable, Iterator, Sequence

import fathom
from fathom.serving.audit import AuditLog
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.running import RunningExperiments
from fathom.serving.history.contract import HistoryStore
from fathom.serving.history.memory import MemoryHistory
from fathom.serving.metrics import Reading
from fathom.serving.recording import Recorder

_FEEDBACK = (
    ("samples", "Requests that were run at the deepest depth too.", "count"),
    ("agreement", "Share of the deepest depth's top 10 that they got.", "mean"),
    ("expected", "The least share that the certificate expects.", "expected"),
    ("capital", "Evidence that it no longer holds.", "capital"),
    ("alarm", "1 while the certificate no longer fits.", "alarm"),
)
_RECERTIFICATION = (
    ("attempts", "Attempts to certify again.", "attempts"),
    ("succeeded", "Those that have certified another routing.", "succeeded"),
    ("samples", "Requests that were run at every depth since the last attempt.", "gathered"),
    ("needed", "How many of them the next attempt takes.", "needed"),
)


def readings(
    deployments: Iterable[Deployment],
    in_flight: int,
    history: HistoryStore | None,
    recorder: Recorder | None,
    audit: AuditLog | None,
    experiments: RunningExperiments | None,
) -> Iterator[Reading]:
    """The gauges of docs/operating.md; those about feedback where a bundle's own profile is certified."""
    yield Reading("fathom_in_flight", "Calls being answered.", {}, in_flight)
    if isinstance(history, MemoryHistory):
        yield Reading("fathom_history_users", "Users whose histories are in memory.", {}, len(history))
        yield Reading("fathom_history_bytes", "Memory that they take, roughly.", {}, history.nbytes)
        yield Reading("fathom_history_evicted_users", "Users who were dropped to make room.", {}, history.evicted)
    if recorder is not None:
        yield Reading("fathom_recorded_requests", "Requests that were recorded.", {}, recorder.recorded)
        yield Reading("fathom_recording_lost_requests", "Requests that could not be.", {}, recorder.lost)
    if audit is not None:
        yield Reading("fathom_audit_lost", "Lines of the audit log that could not be written.", {}, audit.lost)
    if experiments is not None:
        rows, dropped = experiments.logs.lost, experiments.shadows.dropped
        yield Reading("fathom_experiment_rows_lost", "Rows of experiments' logs that found no room.", {}, rows)
        yield Reading("fathom_experiment_shadows_dropped", "Shadow requests that there was no time for.", {}, dropped)
    served = list(deployments)
    for each in served:
        manifest = each.bundle.manifest
        labels = {
            "version": fathom.__version__,
            "bundle": each.name,
            "bundle_version": manifest.version,
            "precision": manifest.precision,
            "engine": each.pipeline.engine.name,
        }
        yield Reading("fathom_build_info", "What is running.", labels, 1)
    for each in served:
        if (refused := each.pipeline.engine.plan_refused) is not None:
            text = "1 where the bundle has TensorRT plans and onnxruntime runs instead."
            yield Reading("fathom_plans_refused", text, {"bundle": each.name, "reason": refused}, 1)
    for each in served:
        text = "Requests waiting for the engine."
        yield Reading("fathom_queue_depth", text, {"bundle": each.name}, each.pipeline.waiting)
    for each in served:
        text = "Changes of the catalogue that are applied."
        yield Reading("fathom_catalogue_version", text, {"bundle": each.name}, each.catalogue.version)
    for each in served:
        text, offered = "Items that may be returned.", each.catalogue.offered
        yield Reading("fathom_catalogue_items", text, {"bundle": each.name}, offered)
    for name, text, place in (
        ("histories", "Histories that are remembered, to go on from.", 0),
        ("bytes", "Memory that they take.", 1),
    ):
        for each in served:
            yield Reading(f"fathom_reuse_{name}", text, {"bundle": each.name}, each.pipeline.cached[place])
    watched = [(each.name, each.pipeline.chooser.policy(each.profile).monitor) for each in served]
    monitors = [(name, monitor) for name, monitor in watched if monitor is not None]
    for name, text, field in _FEEDBACK:
        for bundle, monitor in monitors:
            value = monitor.alarm if field == "alarm" else getattr(monitor.evidence, field)
            yield Reading(f"fathom_feedback_{name}", text, {"bundle": bundle}, value)
    again = [(name, each.recertification) for name, each in monitors if each.recertification is not None]
    for name, text, field in _RECERTIFICATION:
        for bundle, recertification in again:
            yield Reading(f"fathom_recertification_{name}", text, {"bundle": bundle}, getattr(recertification, field))
    yield from _drift(served)


def _drift(served: Sequence[Deployment]) -> Iterator[Reading]:
    for each in served:
        text = "Requests whose features were compared with the training data."
        yield Reading("fathom_drift_samples", text, {"bundle": each.name}, each.pipeline.drift.samples)
    found = [(each.name, reading) for each in served for reading in each.pipeline.drift.readings]
    for name, text in (
        ("mean_rank", "Their mean rank among the histories in the bundle's data, by feature."),
        ("alarm", "1 once that is no longer near 0.5."),
    ):
        for bundle, reading in found:
            labels = {"bundle": bundle, "feature": reading.feature}
            yield Reading(f"fathom_drift_{name}", text, labels, getattr(reading, name))
