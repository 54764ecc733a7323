"""What this machine can really run: every backend is started once, because being listed proves nothing."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from fathom import DISTRIBUTION, installing
from fathom.runtime.engines.gpu import this_gpu
from fathom.runtime.engines.plans import FLAVOURS
from fathom.runtime.engines.session import starts

EXTRAS = {
    "torch": "train",
    "polars": "train",
    "onnx": "train",
    "transformers": "text",
    "peft": "peft",
    "locust": "load",
    "ray": "ray",
    "redis": "redis",
    "faiss": "faiss",
}


def examine() -> dict[str, str]:
    """Name and finding of everything that decides what Fathom can do here."""
    import onnxruntime

    found = {
        "fathom": installed(DISTRIBUTION) or "not installed",
        "python": platform.python_version(),
        "machine": machine(),
        "onnxruntime": onnxruntime.__version__,
    }
    found |= {name: "starts" if works else "listed, but does not start here" for name, works in providers().items()}
    for module, extra in EXTRAS.items():
        here = importlib.util.find_spec(module) is not None
        found[module] = installed(module) or "installed" if here else f"missing: {installing(extra)}"
    found |= {each.title: each.version() or f"missing: {installing(each.extra)}" for each in FLAVOURS.values()}
    gpu = this_gpu()
    found["GPU for plans"] = "none" if gpu is None else f"{gpu.name}, compute capability {gpu.capability}"
    return found | {"GPU for training": _gpu()}


def machine() -> str:
    """Architecture, cores and memory."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib:.1f} GiB"


def installed(name: str) -> str | None:
    """The installed version of a distribution, None when there is none."""
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return None


def providers() -> dict[str, bool]:
    """onnxruntime's execution providers -> whether a session on it really runs on it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return {name: starts(name) for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"}


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown without torch"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
