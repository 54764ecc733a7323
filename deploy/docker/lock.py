"""Writes requirements-*.txt beside this file: what the images install, with a hash for each platform.

    python deploy/docker/lock.py

Versions are those of constraints.txt. Run it after a change of pyproject.toml's dependencies or of constraints.txt.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from fathom.files import write_bytes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: The Python of the images.
PYTHON = "3.11"
TAGS = ("2014", "_2_17", "_2_27", "_2_28")
#: Extras that a server in an image may use.
EXTRAS = ("redis", "sign", "jwt", "otel", "web")
HEAD = "# Written by `python deploy/docker/lock.py`.\n"


def wanted(name: str) -> tuple[list[str], tuple[str, ...]]:
    """The requirements of an image, and the machines it is built for."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = document["project"]["optional-dependencies"]
    if name == "build":
        bom = [each for each in extras["dev"] if each.startswith("cyclonedx-bom")]
        return document["build-system"]["requires"] + bom, ("x86_64", "aarch64")
    common = [*document["project"]["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    if name == "cpu":
        return common, ("x86_64", "aarch64")
    # The packages of onnxruntime for CPUs and for GPUs share a folder, so only one of them may be installed.
    return [*(each for each in common if not each.startswith("onnxruntime")), *extras["gpu"]], ("x86_64",)


def resolved(requirements: list[str], machine: str) -> list[dict[str, Any]]:
    """What pip would install on a machine, without installing it; raises CalledProcessError where it cannot."""
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in TAGS]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        options = ["--only-binary=:all:", f"--python-version={PYTHON}", *platforms, "--target", f"{folder}/target"]
        constraints = ["-c", str(ROOT / "constraints.txt"), "--report", str(report)]
        subprocess.run([*pip, *options, *constraints, *requirements], check=True)
        return list(json.loads(report.read_bytes())["install"])


def locked(name: str) -> str:
    """The text of one file."""
    requirements, machines = wanted(name)
    hashes: dict[str, set[str]] = defaultdict(set)
    for machine in machines:
        for each in resolved(requirements, machine):
            metadata = each["metadata"]
            pinned = f"{metadata['name'].lower().replace('_', '-')}=={metadata['version']}"
            hashes[pinned].add(each["download_info"]["archive_info"]["hashes"]["sha256"])
    lines = [
        " \\\n".join([pinned, *(f"    --hash=sha256:{digest}" for digest in sorted(hashes[pinned]))])
        for pinned in sorted(hashes)
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Write all of them."""
    for name in ("build", "cpu", "gpu"):
        write_bytes(HERE / f"requirements-{name}.txt", locked(name).encode())


if __name__ == "__main__":
    main()
