"""What checks deploy/: programs and schemas in build/tools, where `make deploy-tools` puts them, or on the path."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / "build" / "tools"


def tool(name: str) -> str:
    """The path of a program; skips the test without it."""
    found = shutil.which(name, path=str(TOOLS / "bin")) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed here; make deploy-tools fetches it")
    return found


def schema(name: str) -> Path:
    """The path of a JSON schema; skips the test without it."""
    path = TOOLS / "schemas" / name
    if not path.exists():
        pytest.skip(f"the schema {name} is not here; make deploy-tools fetches it")
    return path


def read_yaml(path: Path) -> Any:
    """A YAML file of deploy/."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def unknown_settings(names: Iterable[str]) -> set[str]:
    """Which of these are no settings of `fathom serve`."""
    from fathom.serving.config import ServerSettings

    return set(names) - set(ServerSettings.model_fields)
