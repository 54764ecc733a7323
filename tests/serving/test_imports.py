import subprocess
import sys

import pytest

HEAVY = ("torch", "polars", "pyarrow", "scipy", "matplotlib", "onnx", "pandas", "faiss")
PROGRAM = """
import importlib, pkgutil, sys
import fathom.serving, fathom.client
for module in pkgutil.walk_packages(fathom.serving.__path__, "fathom.serving."):
    importlib.import_module(module.name)
print(*sorted(set(sys.modules) & set({heavy!r})))
"""


@pytest.mark.parametrize("heavy", HEAVY)
def test_the_whole_server_loads_no_heavy_library(heavy: str, loaded: set[str]) -> None:
    assert heavy not in loaded


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())
