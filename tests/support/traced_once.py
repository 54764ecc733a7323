"""What `torch.onnx.export` traces takes seconds a piece: it is traced once for all the processes that run tests."""

import pickle
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from fathom.files import write_bytes

PROGRAM = """
import sys
from pathlib import Path
sys.path.append(sys.argv.pop(1))
from traced_once import share
share(Path(sys.argv.pop(1)))
from fathom.cli import main
main()
"""


class TracedOnce(dict[object, Any]):
    """Pieces by what they are traced from, as ``exporter.engines.pieces`` keeps them, and each in a file too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _file(self, key: object) -> Path:
        return self._folder / sha256(repr(key).encode()).hexdigest()

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and self._file(key).exists():
            super().__setitem__(key, pickle.loads(self._file(key).read_bytes()))
        return super().__contains__(key)

    def __setitem__(self, key: object, piece: Any) -> None:
        super().__setitem__(key, piece)
        write_bytes(self._file(key), pickle.dumps(piece))


def share(folder: Path) -> None:
    """From now on this process traces only what no other has traced into this folder."""
    from fathom.exporter.engines import pieces

    pieces._traced = TracedOnce(folder)


def share_if_loaded(folder: Path) -> None:
    """The same where the exporter is loaded: most tests do without torch."""
    if "fathom.exporter.engines.pieces" in sys.modules:
        share(folder)


def program(folder: Path) -> list[str]:
    """`fathom` in a process of its own that shares what is in this folder, without its arguments."""
    return [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder)]


def traced_shape() -> dict[str, Any]:
    """The shape of the layers of the preset tiny, which `tiny_build` traces: for tests that can do with any."""
    from fathom.training.presets import preset

    return preset("tiny").model.model_dump(exclude={"layers", "depths"})
