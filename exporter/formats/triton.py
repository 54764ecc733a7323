"""A Triton model repository: one model per engine file, and one that picks each request's depth and asks them.

    repository/fathom/config.pbtxt, 1/model.py, 1/bundle/      picks the depth (business logic scripting)
    repository/fathom-depth-04/config.pbtxt, 1/model.onnx ...  the layers up to the first exit, and so on

Triton's Python needs ``pip install fathom-recommender``. ``python`` segments run with onnxruntime inside Python, for a
Triton without the onnxruntime backend.
"""

import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import onnx

from fathom.artefacts import TRITON
from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import read_files, write_files
from fathom.files import new_folder, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import MANIFEST_NAME

Backend = Literal["onnxruntime", "python"]

ROUTER = "fathom"
#: Not imported here: they need what only Triton has.
_ROUTER_MODEL = Path(__file__).with_name("triton_router.py")
_SEGMENT_MODEL = Path(__file__).with_name("triton_segment.py")
_TYPES = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}


def write_triton(source: Path, out: Path, profile: DeviceProfile, *, backend: Backend = "onnxruntime") -> list[str]:
    """Write the repository and return the names of its models, that of the router first.

    Raises BundleError for a source that is refused, ConfigError for one whose engines are not ONNX, or whose depths the
    profile does not allow.
    """
    with Bundle.open(source) as bundle:
        manifest = bundle.manifest
        if manifest.format != "onnx":
            raise ConfigError(f"{source}: its engines are {manifest.format}; Triton needs onnx")
        depths = tuple(depth for depth in profile.depths if depth in bundle.depths)
        if not depths:
            raise ConfigError(f"{source}: it has no depth that profile {profile.name} allows")
        files = {name: None for depth in bundle.depths for name in manifest.depths[depth].segments}
        with new_folder(out, TRITON) as folder:
            inputs = {name: _segment(folder / model_name(name), bundle.read(name), backend) for name in files}
            _router(folder / ROUTER, bundle, profile, inputs)
        return [ROUTER, *map(model_name, files)]


def model_name(file: str) -> str:
    """The Triton model of an engine file."""
    return f"fathom-{PurePosixPath(file).stem}"


def _segment(folder: Path, engine: bytes, backend: Backend) -> list[str]:
    """One model; returns the names of its inputs."""
    version = folder / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(engine)
    if backend == "python":
        shutil.copyfile(_SEGMENT_MODEL, version / "model.py")
    graph = onnx.load_from_string(engine).graph
    parts = [f'name: "{folder.name}"', f'backend: "{backend}"', "max_batch_size: 0"]
    # An input with a value of its own may be left out.
    own = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in own]
    parts += [_tensor("input", each) for each in inputs] + [_tensor("output", each) for each in graph.output]
    parts += ["instance_group [ { kind: KIND_CPU, count: 1 } ]"]
    (folder / "config.pbtxt").write_text("\n".join(parts) + "\n", encoding="utf-8")
    return [each.name for each in inputs]


def _tensor(kind: str, value: Any) -> str:
    shape = value.type.tensor_type
    dims = ", ".join(str(each.dim_value) if each.HasField("dim_value") else "-1" for each in shape.shape.dim)
    return f'{kind} [ {{ name: "{value.name}", data_type: {_TYPES[shape.elem_type]}, dims: [ {dims} ] }} ]'


def _router(folder: Path, bundle: Bundle, profile: DeviceProfile, inputs: dict[str, list[str]]) -> None:
    version = folder / "1"
    write_files(version / "bundle", read_files(bundle, bundle.manifest.files))
    write_json(version / "bundle" / MANIFEST_NAME, bundle.manifest.model_dump(mode="json"))
    shutil.copyfile(_ROUTER_MODEL, version / "model.py")
    write_json(version / "profile.json", profile.model_dump(mode="json"))
    write_json(version / "segments.json", {name: [model_name(name), wanted] for name, wanted in inputs.items()})
    (folder / "config.pbtxt").write_text(_ROUTER_CONFIG, encoding="utf-8")


_ROUTER_CONFIG = f"""\
name: "{ROUTER}"
backend: "python"
max_batch_size: 0
input [ {{ name: "item_ids", data_type: TYPE_STRING, dims: [ -1 ] }} ]
input [ {{ name: "timestamps", data_type: TYPE_INT64, dims: [ -1 ], optional: true }} ]
input [ {{ name: "k", data_type: TYPE_INT32, dims: [ 1 ], optional: true }} ]
input [ {{ name: "depth", data_type: TYPE_INT32, dims: [ 1 ], optional: true }} ]
output [ {{ name: "recommended", data_type: TYPE_STRING, dims: [ -1 ] }} ]
output [ {{ name: "scores", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "depth_used", data_type: TYPE_INT32, dims: [ 1 ] }} ]
output [ {{ name: "why", data_type: TYPE_STRING, dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""
