"""numpy's threads can be limited after numpy was loaded."""

import subprocess
import sys


def test_one_thread_is_all_that_a_matrix_product_uses() -> None:
    code = (
        "import numpy as np, os\n"
        "from fathom.runtime.blas import limit_blas_threads\n"
        "a = np.ones((600, 600), np.float32)\n"
        "found = limit_blas_threads(1)\n"
        "start = os.times()\n"
        "for _ in range(20): a @ a\n"
        "end = os.times()\n"
        "cpu = end.user + end.system - start.user - start.system\n"
        "assert not found or cpu <= 1.2 * (end.elapsed - start.elapsed) + 0.05, (cpu, end.elapsed - start.elapsed)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
