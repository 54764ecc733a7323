"""Gauges of the server's state, read whenever its metrics are scraped."""

from collections.abc import Iterable, Iterator

import fathom
from fathom.serving.deployment import Deployment
from fathom.serving.history.contract import HistoryStore
from fathom.serving.history.memory import MemoryHistory
from fathom.serving.metrics import Reading

_FEEDBACK = (
    ("samples", "Requests that were run at the deepest depth too.", "count"),
    ("agreement", "Share of the deepest depth's top 10 that they got.", "mean"),
    ("expected", "The least share that the certificate expects.", "expected"),
    ("capital", "Evidence that it no longer holds.", "capital"),
    ("alarm", "1 once the certificate no longer fits.", "alarm"),
)


def readings(deployments: Iterable[Deployment], in_flight: int, history: HistoryStore | None) -> Iterator[Reading]:
    """The gauges of docs/operating.md; those about feedback where a bundle's own profile is certified."""
    yield Reading("fathom_in_flight", "Calls being answered.", {}, in_flight)
    if isinstance(history, MemoryHistory):
        yield Reading("fathom_history_users", "Users whose histories are in memory.", {}, len(history))
        yield Reading("fathom_history_bytes", "Memory that they take, roughly.", {}, history.nbytes)
        yield Reading("fathom_history_evicted_users", "Users who were dropped to make room.", {}, history.evicted)
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
