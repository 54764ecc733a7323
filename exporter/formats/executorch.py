"""A bundle for phones that run ExecuTorch: one .pte file per depth, computed by XNNPACK wherever it can.

Each file is a whole engine for one history: ``items`` int64 (1, history) [, ``timestamps`` of the same shape] -> user
vector (1, width), for every length up to ``max_history``.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fathom.artefacts import BUNDLE
from fathom.errors import ArtefactError, MissingExtraError, ParityError
from fathom.exporter.bundle.derive import copy_files, refuse_same_folder, write_file, write_manifest
from fathom.files import new_folder
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.engine import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, Parity
from fathom.training.checkpoint import Checkpoint
from fathom.training.model import ElasticModel

MAX_ABS_ERROR = 1e-4
_CHECKED_LENGTHS = (1, 2, 7, 50, 200)
_PER_LENGTH = 4


def convert_to_executorch(source: Path, checkpoint: Checkpoint, out: Path) -> Manifest:
    """Write to ``out`` the bundle with .pte engines and return its manifest; the source stays as it is.

    ``checkpoint``: the one that the bundle was made from. The engines are checked against the bundle's. A certificate
    is left behind, and so is the second form. Raises MissingExtraError without ExecuTorch, BundleError for a source
    that is refused, ArtefactError for another checkpoint, ParityError when an engine computes something else.
    """
    refuse_same_folder(source, out)
    with Bundle.open(source) as bundle:
        manifest = bundle.manifest
        if manifest.source.checkpoint != checkpoint.sha256:
            raise ArtefactError(
                f"{source} was made from checkpoint {manifest.source.checkpoint[:12]}, not from"
                f" {checkpoint.sha256[:12]}; give the one that it was exported from"
            )
        kept = {name: entry for name, entry in manifest.files.items() if name.startswith(("items/", "selector/"))}
        kept.pop(CERTIFICATE_FILE, None)
        depths = {}
        with new_folder(out, BUNDLE) as folder:
            copy_files(bundle, folder, kept)
            programs = {}
            for depth, info in manifest.depths.items():
                name, data = f"engines/depth-{depth:02d}.pte", build_program(checkpoint.model, depth)
                kept[name] = write_file(folder, name, data)
                depths[depth] = info.model_copy(update={"segments": (name,)})
                programs[depth] = data
            for depth, parity in _parity(bundle, programs).items():
                depths[depth] = depths[depth].model_copy(update={"parity": parity})
            files = dict(sorted(kept.items()))
            changed: dict[str, object] = {"format": "executorch", "depths": depths, "files": files}
            changed |= {"extension": None, "plans": (), "fits": {}}
            made = write_manifest(folder, manifest.model_copy(update=changed))
            Bundle.open(folder).close()
    return made


def build_program(model: ElasticModel, depth: int) -> bytes:
    """The .pte file of one depth."""
    length = torch.export.Dim("history", min=1, max=model.config.max_history)
    inputs = tuple(torch.ones(1, 3, dtype=torch.int64) for _ in range(2 if model.uses_timestamps else 1))
    with _quiet(), torch.no_grad():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ModuleNotFoundError:
            raise MissingExtraError("executorch", "executorch") from None
        module = _Depth(model, depth).eval()
        program = torch.export.export(module, inputs, dynamic_shapes=tuple({1: length} for _ in inputs))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


class Program:
    """A .pte file that is run here, for checking."""

    def __init__(self, data: bytes) -> None:
        with _quiet():
            from executorch.runtime import Runtime

        # The method reads the program, and the program the bytes, for as long as it is run.
        self._data = data
        self._program = Runtime.get().load_program(self._data)
        self._method = self._program.load_method("forward")

    def run(self, *inputs: Tensor) -> Tensor:
        """The user vector (1, width)."""
        (users,) = self._method.execute(list(inputs))
        out: Tensor = users
        return out


class _Depth(nn.Module):
    def __init__(self, model: ElasticModel, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth

    def forward(self, items: Tensor, timestamps: Tensor | None = None) -> Tensor:
        return self.model.user_vectors(items, timestamps, depth=self.depth)


def _parity(source: Bundle, programs: dict[int, bytes]) -> dict[int, Parity]:
    """Each program against the bundle's engine on random histories; ParityError beyond MAX_ABS_ERROR."""
    rng = np.random.default_rng(0)
    model = source.manifest.model
    lengths = [min(each, model.max_history) for each in _CHECKED_LENGTHS for _ in range(_PER_LENGTH)]
    found = {}
    with open_engine(source) as engine:
        for depth, data in programs.items():
            program, worst, same = Program(data), 0.0, 0
            for length in lengths:
                items = rng.integers(1, source.manifest.items + 1, (1, length))
                times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
                inputs = (items, times) if model.uses_timestamps else (items,)
                users = program.run(*map(torch.from_numpy, inputs)).numpy()
                expected = engine.run(items, times, depth)
                worst = max(worst, float(np.abs(users - expected).max()))
                pair = (np.asarray(source.vectors) @ each[0] for each in (users, expected))
                one, other = (np.argsort(-scores, kind="stable")[:10] for scores in pair)
                same += bool(np.array_equal(one, other))
            if not worst <= MAX_ABS_ERROR:
                raise ParityError(f"depth {depth}: the .pte engine is off by {worst:.2g}, more than {MAX_ABS_ERROR:g}")
            found[depth] = Parity(max_abs_error=worst, top10_agreement=same / len(lengths), histories=len(lengths))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries tell what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
