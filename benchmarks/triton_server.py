"""A real Triton server: started from the files of the package nvidia-pytriton, and asked over HTTP and gRPC.

The package holds a tritonserver with the Python backend; its models run in the environment whose programs come first on
the path, which needs numpy 1.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fathom.benchmarks.server import StartedServer
from fathom.errors import UnavailableError

METHOD = "/inference.GRPCInferenceService/ModelInfer"
READY = "Started HTTPService"
LISTENS_S = 10.0
_KINDS = {"item_ids": "BYTES", "timestamps": "INT64", "k": "INT32", "depth": "INT32"}


class Triton(NamedTuple):
    """``server``: the folder ``tritonserver`` of the package. ``programs``: ``bin`` of its models' environment."""

    server: Path
    programs: Path

    def prepare(self) -> None:
        """Put the stub for this Python where the server looks for it."""
        stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        shutil.copy(self.server / "python_backend_stubs" / stub, self.server / "backends" / "python")
        for program in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
            (self.server / program).chmod(0o755)


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
    http, grpc = _free_port(), _free_port()
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
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if READY in line:
                break
        else:
            raise UnavailableError(f"Triton did not start: {''.join(said[-30:])}")
        try:
            _wait_for(http)
            server = StartedServer(f"127.0.0.1:{grpc}", process.pid, time.perf_counter() - begin)
            yield StartedTriton(f"127.0.0.1:{http}", server)
        finally:
            process.terminate()
            process.stderr.read()


def _wait_for(port: int) -> None:
    """It says that it listens some moments before it does."""
    end = time.monotonic() + LISTENS_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise UnavailableError(f"Triton does not listen on port {port}") from None
            time.sleep(0.02)
        else:
            return


def infer_message(model: str, items: Sequence[str], depth: int) -> bytes:
    """An encoded ModelInferRequest with one history, for this depth."""
    ids = b"".join(struct.pack("<I", len(item)) + item for item in (each.encode() for each in items))
    tensors = [("item_ids", "BYTES", len(items), ids), ("depth", "INT32", 1, struct.pack("<i", depth))]
    message = _field(1, model.encode())
    for name, kind, length, _ in tensors:
        shape = _field(3, _varint(1) + _varint(length))
        message += _field(5, _field(1, name.encode()) + _field(2, kind.encode()) + shape)
    return message + b"".join(_field(7, raw) for *_, raw in tensors)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
