"""The wheel installs one name, `fathom`, with every module of every folder and nothing else."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fathom import DISTRIBUTION

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.name for path in (ROOT / "src" / "fathom").iterdir() if path.is_symlink())
DATA_SUFFIXES = {".onnx", ".py", ".pyi", ".yaml", ".proto", ".typed", ".json", ".html", ".css", ".js", ".svg"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that was built from a copy of the sources, so that no build folder is left here."""
    tree = tmp_path_factory.mktemp("sources")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tree)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in [*FOLDERS, "src"]:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tree / "dist"),
        str(tree),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (tree / "dist").glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> set[str]:
    roots = [ROOT / folder for folder in FOLDERS] + [ROOT / "src" / "fathom"]
    # Links are not followed: each folder is walked once, under its own name.
    files = [path for root in roots for path in root.rglob("*") if path.suffix in DATA_SUFFIXES]
    return {f"fathom/{path.relative_to(ROOT).as_posix().removeprefix('src/fathom/')}" for path in files}


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel_names: set[str]) -> None:
    assert {name for name in wheel_names if ".dist-info/" not in name} == sources()


def test_every_hint_names_the_distribution_and_an_extra_that_it_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    texts = [path for folder in [*FOLDERS, "src/fathom", "docs"] for path in (ROOT / folder).glob("**/*")]
    for path in [*texts, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        if path.suffix in {".py", ".md"} and path.name != "log.md":
            text = path.read_text(encoding="utf-8")
            for name, extra in re.findall(r"""pip install ['"]?([\w-]+)\[(\w+)\]""", text):
                assert name == DISTRIBUTION, path
                assert extra in project["optional-dependencies"], path
            assert not re.search(r"""pip install ['"]?fathom\b(?!-)""", text), path
            for extra in re.findall(r"""(?:MissingExtraError\(.*, |installing\()["'](\w+)["']\)""", text):
                assert extra in project["optional-dependencies"], path


def test_every_folder_of_the_design_is_linked_into_the_package() -> None:
    expected = "benchmarks edge_profiles exporter importance loadtests protos runtime selector serving training"
    assert expected.split() == FOLDERS
    for folder in FOLDERS:
        assert (ROOT / "src" / "fathom" / folder).readlink() == Path("../..") / folder


def test_everything_that_a_server_needs_has_a_wheel_for_arm(tmp_path: Path) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    platforms = [f"--platform=manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_27", "_2_28")]
    options = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--python-version=3.11", *platforms]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "arm")]
    report = tmp_path / "report.json"
    command = [*pip, *options, "--report", str(report), "-c", str(ROOT / "constraints.txt"), *dependencies]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    installed = json.loads(report.read_bytes())["install"]
    wheels = {each["metadata"]["name"]: each["download_info"]["url"].rsplit("/", 1)[-1] for each in installed}
    assert {"numpy", "onnxruntime", "grpcio", "pydantic_core"} <= set(wheels)
    assert all(wheel.endswith(("-any.whl", "_aarch64.whl")) for wheel in wheels.values()), wheels
