"""Stores one benchmark run as ``results/NAME.json``: the source of every published figure."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fathom import DISTRIBUTION
from fathom.artefacts import RUN, check_output
from fathom.distribution import fathom_commit
from fathom.errors import ConfigError, FathomError
from fathom.files import read_json, write_json

SCHEMA_VERSION = 1
RESULTS = Path("results")
PACKAGES = (
    DISTRIBUTION,
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "torch",
    "grpcio",
    "protobuf",
    "locust",
)


def save_run(
    name: str,
    *,
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    seed: int | None = None,
    command: Sequence[str] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write one run (command, config, seed, commit, machine, versions, result) and return its path.

    ``config`` and ``result`` must be plain JSON values with units in their names; ``command`` defaults to the
    running program's. ``folder`` is ``results/`` of the current directory: run benchmarks from the repository root.
    Raises ConfigError when a value is not JSON, or is NaN or infinite; OutputError where another file is in the way.
    """
    path = folder / f"{name}.json"
    check_output(path, RUN)
    run = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command) if command is not None else _running_command(),
        "seed": seed,
        "commit": fathom_commit(),
        "machine": machine(),
        "versions": versions(),
        "config": dict(config),
        "result": dict(result),
    }
    try:
        json.dumps(run, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: this run cannot be stored as JSON: {error}") from None
    write_json(path, run)
    return path


def load_run(path: Path) -> Mapping[str, Any]:
    """A stored run; raises ArtefactError where it is missing or is none."""
    return read_json(path, kind="stored run", schema_version=SCHEMA_VERSION)


def run(main: Callable[[], object]) -> None:
    """Call a benchmark's ``main``; a mistake of the user's ends the program with one line and exit code 2."""
    try:
        main()
    except FathomError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine: CPU, GPU, cores, memory, load, system."""
    return {
        **({"gpu": gpu} if (gpu := _gpu_model()) else {}),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a figure; what is not installed is left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    """The first GPU and its driver, as nvidia-smi tells, None without one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return told.splitlines()[0] if told else None


def _running_command() -> list[str]:
    """``python -m module arguments``; absolute paths are made relative to the current directory, or shortened."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    # Also those within NAME=BUNDLE:DATASET and --option=PATH.
    return program + ["".join(map(_short, re.split(r"([=:])", argument))) for argument in sys.argv[1:]]


def _short(part: str) -> str:
    path = Path(part)
    if not path.is_absolute():
        return part
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
