"""Keeps what a command found among the runs."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from fathom import show
from fathom.runs import RunRecord, record


def keep_run(
    command: str,
    *,
    model: object,
    data: object,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    outputs: tuple[Path | None, ...],
    task: str = "recommendation",
) -> None:
    """Add a run that ended well, with its finite metrics; where that is not possible, say so on stderr and go on."""
    written = [str(path) for path in outputs if path is not None]
    finite = {name: float(value) for name, value in metrics.items() if isfinite(value)}
    why_not = record(RunRecord(command, task, str(model), str(data), finite, config, written))
    if why_not is not None:
        show.note(why_not)
