"""The selector loads in milliseconds and brings numpy, pydantic and yaml, nothing else."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, time
before = set(sys.modules)
start = time.process_time()
import fathom.edge_profiles.profile, fathom.selector.chooser, fathom.selector.complexity
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(json.dumps([seconds, sorted(new)]))
"""
LIGHT = {
    *("fathom", "numpy", "pydantic", "pydantic_core", "yaml", "cython_runtime"),
    *("annotated_types", "typing_extensions", "typing_inspection"),  # what pydantic itself imports
}


def test_the_selector_imports_little_and_fast() -> None:
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    # Time of the processor, best of three: what else the machine does must not decide.
    assert min(seconds for seconds, _ in runs) < 0.5
    # Names with an underscore are the compiled halves of these packages.
    assert {name for name in runs[0][1] if not name.startswith("_")} <= LIGHT
