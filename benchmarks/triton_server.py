"""A real Triton server: started from the files of the package nvidia-pytriton, and asked over HTTP and gRPC.

The package holds a tritonserver with the Python backend; its models run in the environment whose programs come first on
the path, which needs numpy 1.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fathom
from fathom.benchmarks import peer_servers
from fathom.benchmarks.ports import accepts_within, free_port
from fathom.benchmarks.server import StartedServer, end
from fathom.edge_profiles.profile import load_profile
from fathom.errors import UnavailableError
from fathom.exporter.formats.triton import MODEL, write_triton

READY = "Started HTTPService"
LISTENS_S = 10.0
BY_HAND = "by-hand"
#: Of the model by hand.
_OUTPUTS = ('"recommended"', '"scores"')
_KINDS = {"item_ids": "BYTES", "timestamps": "INT64", "k": "INT32", "depth": "INT32"}


class Triton(NamedTuple):
    """``server``: the folder ``tritonserver`` of the package. ``programs``: ``bin`` of its models' environment."""

    server: Path
    programs: Path

    def prepare(self) -> None:
        """Put the stub for this Python where the server looks for it, and Fathom's source on its models' path."""
        stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        shutil.copy(self.server / "python_backend_stubs" / stub, self.server / "backends" / "python")
        for program in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
            (self.server / program).chmod(0o755)
        # The stub takes no PYTHONPATH.
        (packages,) = (self.programs.parent / "lib").glob("python*/site-packages")
        (packages / "fathom.pth").write_text(str(Path(fathom.__file__).parents[1]))


def write_repository(bundle: Path, folder: Path, models: Collection[str] = (MODEL, BY_HAND), wait_us: int = 0) -> None:
    """Fathom's model and the one by hand, or one of them, with the same bundle and configuration.

    ``wait_us``: how long Triton waits for a batch to fill; 0 as Fathom's repository has it.
    """
    write_triton(bundle, folder, load_profile("cloud"))
    if BY_HAND in models:
        _write_by_hand(folder, wait_us)
    if MODEL not in models:
        shutil.rmtree(folder / MODEL)


def _write_by_hand(folder: Path, wait_us: int) -> None:
    other = folder / BY_HAND
    shutil.copytree(folder / MODEL, other)
    shutil.copyfile(Path(peer_servers.__file__).with_name("triton_model.py"), other / "1" / "model.py")
    waits = f"dynamic_batching {{ max_queue_delay_microseconds: {wait_us} }}" if wait_us else "dynamic_batching { }"
    text = (other / "config.pbtxt").read_text().replace(f'name: "{MODEL}"', f'name: "{BY_HAND}"')
    lines = text.replace("dynamic_batching { }", waits).splitlines()
    kept = [line for line in lines if not line.startswith("output") or any(name in line for name in _OUTPUTS)]
    (other / "config.pbtxt").write_text("\n".join(kept) + "\n")


class StartedTriton(NamedTuple):
    """``http``: host and port; ``grpc``: the same, with its process."""

    http: str
    grpc: StartedServer

    def infer(self, model: str = "fathom", **inputs: Any) -> dict[str, list[Any]]:
        """The outputs of a model for one history, or for several of one length; raises HTTPError where it refuses."""
        tensors = [
            {"name": name, "datatype": _KINDS[name], "shape": list(np.atleast_2d(data).shape), "data": data}
            for name, data in inputs.items()
        ]
        answer = self._post(f"models/{model}/infer", json.dumps({"inputs": tensors}).encode())
        return {each["name"]: each["data"] for each in answer["outputs"]}

    def runs(self, model: str = "fathom") -> tuple[int, int]:
        """How many requests a model has answered, and in how many batches."""
        (found,) = self._post(f"models/{model}/stats")["model_stats"]
        return int(found["inference_count"]), int(found["execution_count"])

    def _post(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.http}/v2/{path}", body, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextmanager
def started_triton(triton: Triton, repository: Path) -> Iterator[StartedTriton]:
    """Serve a repository; raises UnavailableError with the server's last words when it does not get ready."""
    http, grpc = free_port(), free_port()
    command = [str(triton.server / "bin" / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={triton.server / 'backends'}", "--allow-metrics=false"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    # Triton's Python finds its packages by the `python3` that comes first on the path.
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {
        "PATH": f"{triton.programs}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }
    begin, said = time.perf_counter(), []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if READY in line:
                break
        else:
            words = [line for line in said if "UNAVAILABLE" in line] or said
            raise UnavailableError(f"Triton did not start: {words[-1].strip()}")
        try:
            # It says that it listens some moments before it does.
            if not accepts_within(http, LISTENS_S):
                raise UnavailableError(f"Triton does not listen on port {http}")
            server = StartedServer(f"127.0.0.1:{grpc}", process.pid, time.perf_counter() - begin)
            yield StartedTriton(f"127.0.0.1:{http}", server)
        finally:
            end(process)
            process.stderr.read()
