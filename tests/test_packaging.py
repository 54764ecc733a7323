"""The wheel installs one name, `fathom`, with every module of every folder and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.name for path in (ROOT / "src" / "fathom").iterdir() if path.is_symlink())
DATA_SUFFIXES = {".py", ".pyi", ".yaml", ".proto", ".typed", ".json"}


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
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> set[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in DATA_SUFFIXES]
    glue = [path for path in (ROOT / "src" / "fathom").iterdir() if path.suffix in DATA_SUFFIXES]
    return {f"fathom/{path.relative_to(ROOT).as_posix()}" for path in files} | {f"fathom/{path.name}" for path in glue}


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel_names: set[str]) -> None:
    assert {name for name in wheel_names if ".dist-info/" not in name} == sources()


def test_every_folder_of_the_design_is_linked_into_the_package() -> None:
    expected = "benchmarks edge_profiles exporter importance loadtests protos runtime selector serving training"
    assert expected.split() == FOLDERS
    for folder in FOLDERS:
        assert (ROOT / "src" / "fathom" / folder).readlink() == Path("../..") / folder
