"""A bundle for phones that run ExecuTorch: one .pte file per depth, computed by XNNPACK wherever it can.

Each file is a whole engine for one history: ``items`` int64 (1, history) [, ``timestamps`` of the same shape] -> user
vector (1, width), for every length up to ``max_history``.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fathom.errors import ArtefactError, MissingExtraError, ParityError
from fathom.exporter.bundle.derive import CHECKED_LENGTHS, derive_bundle, open_source, random_histories
from fathom.exporter.engines.quiet import quiet
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, Parity
from fathom.training.checkpoint import Checkpoint
from fathom.training.model import ElasticModel

MAX_ABS_ERROR = 1e-4
_PER_LENGTH = 4


def convert_to_executorch(source: Path, checkpoint: Checkpoint, out: Path) -> Manifest:
    """Write to ``out`` the bundle with .pte engines and return its manifest; the source stays as it is.

    ``checkpoint``: the one that the bundle was made from. The engines are checked against the bundle's. A certificate
    is left behind, and so are the engines for incremental inference. Raises MissingExtraError without ExecuTorch,
    BundleError for a source that is refused, ArtefactError for another checkpoint, ParityError when an engine computes
    something else.
    """
    with open_source(source, out) as bundle:
        manifest = bundle.manifest
        if manifest.source.checkpoint != checkpoint.sha256:
            raise ArtefactError(
                f"{source} was made from checkpoint {manifest.source.checkpoint[:12]}, not from"
                f" {checkpoint.sha256[:12]}; give the one that it was exported from"
            )
        programs = {depth: build_program(checkpoint.model, depth) for depth in manifest.depths}
        names = {depth: f"engines/depth-{depth:02d}.pte" for depth in programs}
        parity = _parity(bundle, programs)
        depths = {
            depth: info.model_copy(update={"segments": (names[depth],), "parity": parity[depth]})
            for depth, info in manifest.depths.items()
        }
        engines = {name for name in manifest.files if not name.startswith(("items/", "selector/", "counting/"))}
        return derive_bundle(
            bundle,
            out,
            {names[depth]: data for depth, data in programs.items()},
            drop={CERTIFICATE_FILE, *engines},
            format="executorch",
            depths=depths,
            extension=None,
            plans=(),
            fits={},
        )


def build_program(model: ElasticModel, depth: int) -> bytes:
    """The .pte file of one depth."""
    length = torch.export.Dim("history", min=1, max=model.config.max_history)
    inputs = tuple(torch.ones(1, 3, dtype=torch.int64) for _ in range(2 if model.uses_timestamps else 1))
    with quiet(logging.WARNING, Warning), torch.no_grad():
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
        with quiet(logging.WARNING, Warning):
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
    lengths = [length for length in CHECKED_LENGTHS for _ in range(_PER_LENGTH)]
    found = {}
    with open_engine(source) as engine:
        for depth, data in programs.items():
            program, worst, same = Program(data), 0.0, 0
            for items, times in random_histories(source.manifest, rng, rows=1, lengths=lengths):
                inputs = (items, times) if source.manifest.model.uses_timestamps else (items,)
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
