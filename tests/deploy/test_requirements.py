"""The images install what pyproject.toml asks for, in the versions of constraints.txt, and the SBOM names all of it."""

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from deploy_tools import DEPLOY, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fathom import DISTRIBUTION

PINNED = re.compile(r"^([\w.-]+)==(\S+) \\$", re.MULTILINE)
CONSTRAINTS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """What an installed distribution needs here, with everything that this needs, but for itself."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        distribution, wanted = waiting.pop()
        for each in map(Requirement, requires(distribution) or []):
            markers = [{"extra": extra} for extra in wanted or {""}]
            following = (canonicalize_name(each.name), frozenset(each.extras))
            if following not in found and (not each.marker or any(map(each.marker.evaluate, markers))):
                found.add(following)
                waiting.append(following)
    return {distribution for distribution, _ in found}


def locked(name: str) -> dict[str, str]:
    text = (DEPLOY / "docker" / f"requirements-{name}.txt").read_text()
    return {canonicalize_name(package): version for package, version in PINNED.findall(text)}


RUNTIME = closure(DISTRIBUTION, frozenset({"redis", "sign", "jwt", "otel", "web"}))


def test_the_cpu_image_installs_what_the_server_needs_and_nothing_else() -> None:
    assert set(locked("cpu")) == RUNTIME


def test_the_gpu_image_has_one_onnxruntime_and_cuda() -> None:
    found = set(locked("gpu"))
    assert found >= RUNTIME - {"onnxruntime"} | {"onnxruntime-gpu", "cuda-bindings", "nvidia-cudnn-cu13"}
    assert "onnxruntime" not in found


def test_the_wheel_is_built_with_what_pyproject_names() -> None:
    assert {"setuptools", "cyclonedx-bom"} <= set(locked("build"))


@pytest.mark.parametrize("name", ["build", "cpu", "gpu"])
def test_versions_are_those_that_are_tested_together(name: str) -> None:
    pinned = {package: version for package, version in locked(name).items() if package in CONSTRAINTS}
    assert pinned == {package: CONSTRAINTS[package] for package in pinned}
    assert len(pinned) > 10


def test_what_has_wheels_for_each_platform_has_a_hash_for_each() -> None:
    text = (DEPLOY / "docker" / "requirements-cpu.txt").read_text()
    entries = {entry.split("==")[0]: entry.count("--hash=sha256:") for entry in re.split(r"\n(?=[\w.-]+==)", text)}
    assert all(count in (1, 2) for name, count in entries.items() if not name.startswith("#"))
    compiled = ("numpy", "onnxruntime", "grpcio", "pydantic-core", "cryptography", "uvloop")
    assert {entries[name] for name in compiled} == {2}


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Components by name, of an SBOM of this environment, as in the Dockerfile, but not validated, which is slow."""
    out = tmp_path_factory.mktemp("sbom") / "sbom.cdx.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--no-validate", "-o", str(out)]
    done = subprocess.run([*command, sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_bytes())
    assert found["bomFormat"] == "CycloneDX"
    return {canonicalize_name(each["name"]): each for each in found["components"]}


def test_the_sbom_names_every_runtime_dependency_with_its_version(sbom: dict[str, dict[str, object]]) -> None:
    assert {name: sbom[name]["version"] for name in RUNTIME} == {name: CONSTRAINTS[name] for name in RUNTIME}
    assert DISTRIBUTION in sbom


def test_no_file_of_deploy_names_where_packages_come_from() -> None:
    for path in (path for path in DEPLOY.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|find-links|https?://[\w.-]*(pypi|pythonhosted|mirror)", text), path
        assert Path.home().as_posix() + "/" not in text, path
