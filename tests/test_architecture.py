"""Imports run one way, and the online half stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
OFFLINE = {"torch", "polars", "pyarrow", "scipy", "matplotlib", "onnx", "locust"}


def test_imports_between_folders_run_one_way() -> None:
    result = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("module", ["fathom.serving.server", "fathom.runtime.pipeline", "fathom.client", "fathom.cli"])
def test_the_online_half_loads_nothing_of_the_offline_half(module: str) -> None:
    code = f"import sys, {module}; print(' '.join(sorted({OFFLINE!r} & set(sys.modules))))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
