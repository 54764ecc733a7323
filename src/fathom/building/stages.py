"""Stages of a build: each reads artefacts, writes one, and is skipped while nothing it depends on has changed."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.artefacts import Kind
from fathom.files import sha256_bytes, sha256_file, sha256_tree, write_json

PACKAGE = Path(__file__).parents[1]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One step: ``run`` writes ``output``, of this ``kind``, from ``inputs``, ``settings`` and ``code``.

    ``digest`` names what was written, and does not change with what may be done to the output afterwards.
    """

    name: str
    output: Path
    kind: Kind
    run: Callable[[], None]
    inputs: Sequence[Path] = ()
    settings: Any = None
    code: Sequence[str] = ()
    digest: Callable[[Path], str] = sha256_tree

    def key(self) -> str:
        """Sha256 of everything that the output depends on."""
        parts = [self.name, json.dumps(self.settings, sort_keys=True, default=str)]
        parts += [f"{path.name} {sha256_tree(path)}" for path in self.inputs]
        parts += [f"{name} {_code_sha256(name)}" for name in self.code]
        return sha256_bytes("\n".join(parts).encode(errors="surrogateescape"))


def _code_sha256(code: str) -> str:
    path = PACKAGE / code
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return sha256_bytes("\n".join(f"{file.name} {sha256_file(file)}" for file in files).encode())


class Stamps:
    """Which outputs are whole and current: one small JSON beside them. A stamp is written only after its output."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return value["stages"] if isinstance(value, dict) and value.get("schema_version") == SCHEMA_VERSION else {}

    def seconds(self) -> dict[str, float]:
        """What each stage took when it last ran."""
        return {name: float(stamp["seconds"]) for name, stamp in self._read().items()}

    def current(self, stage: Stage) -> bool:
        """Whether the stage's output exists, is what its last run wrote, and was made from today's inputs."""
        stamp = self._read().get(stage.name)
        if stamp is None or not stage.output.exists():
            return False
        return bool(stamp["key"] == stage.key() and stamp["output"] == stage.digest(stage.output))

    def run(self, stage: Stage) -> float:
        """Run the stage and stamp its output; returns the seconds that it took."""
        key = stage.key()
        start = time.monotonic()
        stage.run()
        seconds = time.monotonic() - start
        stamps = self._read()
        stamps[stage.name] = {"key": key, "output": stage.digest(stage.output), "seconds": round(seconds, 2)}
        write_json(self.path, {"schema_version": SCHEMA_VERSION, "stages": stamps})
        return seconds
