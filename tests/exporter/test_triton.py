"""The Triton repository: whole on disk, and in a real Triton it answers what Fathom's own server answers."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

import fathom
from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.exporter.formats.ort import convert_to_ort
from fathom.exporter.formats.triton import write_triton
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter

CLOUD = load_profile("cloud")
#: Holds a tritonserver with the Python backend, which was built for numpy 1.
WHEEL = "nvidia-pytriton==0.7.0"
NEEDS = ["numpy<2", f"onnxruntime=={onnxruntime.__version__}", "pydantic>=2.11", "pyyaml>=6"]
HERE = sys.platform == "linux" and platform.machine() == "x86_64"


def test_a_repository_has_a_model_per_segment_and_one_that_picks_the_depth(bundle_path: Path, tmp_path: Path) -> None:
    models = write_triton(bundle_path, tmp_path / "repository", CLOUD)
    assert models == ["fathom", "fathom-depth-04", "fathom-depth-08", "fathom-depth-12", "fathom-depth-16"]
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == sorted(models)
    with Bundle.open(bundle_path) as bundle:
        width = bundle.manifest.model.width
    config = (tmp_path / "repository/fathom-depth-08/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert f'input [ {{ name: "hidden_in", data_type: TYPE_FP32, dims: [ -1, -1, {width} ] }} ]' in config
    assert f'output [ {{ name: "user_vector", data_type: TYPE_FP32, dims: [ -1, {width} ] }} ]' in config
    assert not (tmp_path / "repository/fathom-depth-08/1/model.py").exists()


def test_what_triton_cannot_serve_is_refused_in_one_line(bundle_path: Path, tmp_path: Path) -> None:
    convert_to_ort(bundle_path, tmp_path / "phone")
    with pytest.raises(ConfigError, match="its engines are ort; Triton needs onnx"):
        write_triton(tmp_path / "phone", tmp_path / "repository", CLOUD)
    assert not (tmp_path / "repository").exists()


class Triton(NamedTuple):
    """A real Triton server: its folder, and the programs of the environment that its models run in."""

    server: Path
    programs: Path


def install(pip: Path, *packages: str) -> None:
    command = [str(pip), "install", "--quiet", "--disable-pip-version-check", *packages]
    installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode != 0:
        pytest.skip(f"{packages[-1]} cannot be installed: {installed.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """Triton in an environment of its own."""
    if not HERE:
        pytest.skip("there is a tritonserver for x86-64 Linux only")
    folder = tmp_path_factory.mktemp("triton")
    venv.create(folder / "environment", with_pip=True)
    programs = folder / "environment" / "bin"
    install(programs / "pip", *NEEDS)
    install(programs / "pip", "--no-deps", "--target", str(folder), WHEEL)
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (packages / "fathom.pth").write_text(str(Path(fathom.__file__).parents[1]))
    server = folder / "pytriton" / "tritonserver"
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / stub, server / "backends" / "python")
    for program in (server / "bin/tritonserver", server / "backends/python/triton_python_backend_stub"):
        program.chmod(0o755)
    return Triton(server, programs)


@pytest.fixture
def triton(installed: Triton, counting_bundle: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Triton that serves the bundle."""
    write_triton(counting_bundle, tmp_path / "repository", CLOUD, backend="python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(installed.server / "bin" / "tritonserver"), f"--model-repository={tmp_path / 'repository'}"]
    command += [
        f"--backend-directory={installed.server / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
    ]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    # Triton's Python finds its packages by the `python3` that comes first on the path.
    path = [str(installed.programs), os.environ["PATH"]]
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"PATH": ":".join(path), "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "Started HTTPService" in line:
                break
        else:
            pytest.fail("".join(said[-30:]))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.stderr.read()


def ask(address: str, **inputs: Any) -> dict[str, list[Any]]:
    """The outputs of the model that picks the depth, by Triton's HTTP protocol."""
    kinds = {"item_ids": "BYTES", "timestamps": "INT64", "k": "INT32", "depth": "INT32"}
    tensors = [
        {"name": name, "datatype": kinds[name], "shape": [len(data)], "data": data} for name, data in inputs.items()
    ]
    body = json.dumps({"inputs": tensors}).encode()
    request = urllib.request.Request(f"{address}/v2/models/fathom/infer", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return {each["name"]: each["data"] for each in json.load(answer)["outputs"]}


def test_triton_answers_the_same_items_as_our_server(triton: str, counting_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    with Bundle.open(counting_bundle) as bundle:
        ids, depths, counting = bundle.catalogue.ids, bundle.depths, bundle.counting
        assert counting is not None
    with running_server(counting_bundle) as server, Client(server.address) as client:
        seen = set()
        for number in range(100):
            length = int(rng.integers(1, 30))
            history = [ids[i] for i in rng.integers(0, len(ids), length)]
            times = (1_600_000_000 + np.cumsum(rng.integers(60, 90_000, length))).tolist()
            depth = None if number % 2 else depths[number % len(depths)]
            ours = client.recommend(history, k=7, timestamps=times, depth=depth, profile="cloud")
            fixed = {} if depth is None else {"depth": [depth]}
            theirs = ask(triton, item_ids=history, timestamps=times, k=[7], **fixed)
            assert theirs["recommended"] == [item.id for item in ours.items]
            assert theirs["scores"] == pytest.approx([item.score for item in ours.items], abs=1e-5)
            assert theirs["depth_used"] == [ours.depth]
            assert theirs["why"] == [ours.why]
            seen.add(ours.depth)
        everything = [item.id for item in client.recommend(ids[:1], k=1_000).items]
        assert ask(triton, item_ids=ids[:1], k=[1_000])["recommended"] == everything
        counted, _ = counting.best(np.arange(3), 10, ItemFilter(exclude=np.arange(3)))
        at_0 = ask(triton, item_ids=ids[:3], depth=[0])
        assert (at_0["recommended"], at_0["depth_used"]) == ([ids[item] for item in counted], [0])
        popular, _ = counting.best(np.arange(0), 10, ItemFilter())
        stranger = ask(triton, item_ids=["nothing known"])
        assert (stranger["recommended"], stranger["depth_used"]) == ([ids[item] for item in popular], [0])
    assert len(seen) > 1
    for wrong, words in (
        ({"item_ids": ["nothing known"], "depth": [4]}, "no item of the history is in the catalogue"),
        ({"item_ids": [ids[0]], "k": [0]}, "k is 0, at least 1 and at most 1000"),
        ({"item_ids": [ids[0]], "timestamps": [1, 2]}, "timestamps has 2 values for 1 items"),
        ({"item_ids": [ids[0]], "depth": [5]}, "depth 5 is not served here"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(triton, **wrong)
        assert words in refused.value.read().decode()
    assert len(ask(triton, item_ids=[ids[0]])["recommended"]) == 10
