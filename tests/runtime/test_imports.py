"""The runtime stays light: a server or an edge device has no torch."""

import subprocess
import sys


def test_the_runtime_loads_nothing_of_the_offline_half() -> None:
    code = (
        "import sys, pkgutil, importlib, fathom.runtime\n"
        "for module in pkgutil.walk_packages(fathom.runtime.__path__, 'fathom.runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'polars', 'scipy', 'pyarrow', 'matplotlib', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
