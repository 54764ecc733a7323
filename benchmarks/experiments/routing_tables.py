"""The sections of docs/results.md about routing and its certificate, from the stored runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments import certificate, routing
from fathom.benchmarks.systems import feedback, routing_server

Run = Mapping[str, Any]


def routing_sections(folder: Path) -> list[str]:
    """All of it; a part that was not measured is left out."""
    parts = [routing.section(routing.load_routed(folder))]
    parts += [certificate.section(run)] if (run := _stored(folder, "certificate")) else []
    parts += [routing_server.BENCHMARK.section(folder), feedback.BENCHMARK.section(folder)]
    return [part for part in parts if part]


def _stored(folder: Path, name: str) -> Run | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else None
