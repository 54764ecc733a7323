"""The examples work as their readers find them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.importance.rank import rank_layers
from fathom.importance.registry import load_methods
from fathom.importance.toy import GatedToy, toy_batches

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_an_importance_method_of_another_package_appears_in_the_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(EXAMPLES / "weight-norm", tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "installed", source], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    model = GatedToy([1.0, 1.0, 1.0, 1.0])
    for layer, size in enumerate((0.5, 2.0, 0.1, 1.0)):
        model.blocks[layer].weight.data *= size
    ranking = rank_layers(model, toy_batches(1, 8), load_methods(["weight_norm", "gradient"]))
    assert ranking.methods["weight_norm"].ranks == (3, 1, 4, 2)
    assert set(ranking.kendall_tau) == {"weight_norm", "gradient"}
