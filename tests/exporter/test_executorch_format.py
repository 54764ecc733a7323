"""A bundle for ExecuTorch: the same user vectors from .pte files, and nothing in it that a phone cannot use."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ArtefactError, ConfigError
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.formats.executorch import Program, build_program, convert_to_executorch
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.open import open_engine
from fathom.training.checkpoint import Checkpoint

pytest.importorskip("executorch", reason="ExecuTorch is not installed: pip install 'fathom-recommender[executorch]'")


@pytest.fixture(scope="module")
def phone(bundle_path: Path, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's depth 4 for a phone."""
    folder = tmp_path_factory.mktemp("phone")
    slice_bundle(bundle_path, load_profile("mobile").model_copy(update={"depths": (4,)}), folder / "small")
    convert_to_executorch(folder / "small", checkpoint, folder / "pte")
    return folder / "pte"


def test_a_phone_gets_a_file_per_depth_that_computes_what_onnxruntime_computes(phone: Path, bundle_path: Path) -> None:
    assert all(check.ok for check in verify(phone))
    rng = np.random.default_rng(1)
    with Bundle.open(phone) as bundle, Bundle.open(bundle_path) as whole, open_engine(whole) as engine:
        assert bundle.manifest.format == "executorch"
        assert bundle.depths == (4,)
        assert bundle.manifest.extension is None
        parity = bundle.manifest.depths[4].parity
        assert 0 < parity.max_abs_error < 1e-4
        assert (parity.top10_agreement, parity.histories) == (1.0, 20)
        (name,) = bundle.segments(4)
        assert b"XnnpackBackend" in bundle.read(name)
        program = Program(bundle.read(name))
        for length in (1, 3, bundle.manifest.model.max_history):
            items = rng.integers(1, bundle.manifest.items + 1, (1, length))
            times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
            found = program.run(torch.from_numpy(items), torch.from_numpy(times)).numpy()
            assert found == pytest.approx(engine.run(items, times, 4), abs=1e-4)


def test_a_server_does_not_open_it(phone: Path) -> None:
    with Bundle.open(phone) as bundle, pytest.raises(ConfigError, match=r"its engines are \.pte files"):
        open_engine(bundle)


def test_another_checkpoint_is_refused(bundle_path: Path, make_checkpoint: object, tmp_path: Path) -> None:
    from dataclasses import replace

    other = replace(make_checkpoint(), sha256="e" * 64)  # type: ignore[operator]
    with pytest.raises(ArtefactError, match="was made from checkpoint cccccccccccc, not from eeeeeeeeeeee"):
        convert_to_executorch(bundle_path, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gated_blocks_are_built_too(make_checkpoint: object) -> None:
    model = make_checkpoint(block="gated", layers=2, paths={2: (0, 1)}).model  # type: ignore[operator]
    items = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        expected = model.user_vectors(items, depth=2)
    torch.testing.assert_close(Program(build_program(model, 2)).run(items), expected, atol=1e-4, rtol=0)
