"""numpy's own threads, which the environment can only set before numpy is loaded."""

import ctypes
from pathlib import Path

import numpy as np

# OpenBLAS under the names that its builds give it; the first two are those inside numpy's wheels.
_SETTERS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads")


def limit_blas_threads(threads: int) -> bool:
    """Let numpy's matrix products use at most so many threads, in the whole process; False when it has no OpenBLAS.

    OpenBLAS waits for its helper threads by yielding: when another process has the core, a product of 50 µs takes
    10 ms and more. A server with one engine thread per process wants exactly one.
    """
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for file in folder.glob("*openblas*"):
            library = ctypes.CDLL(str(file))
            for name in _SETTERS:
                if hasattr(library, name):
                    getattr(library, name)(ctypes.c_int(threads))
                    return True
    return False
