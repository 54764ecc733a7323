"""A Triton model repository: one model, which holds a bundle and answers the batches that Triton makes.

    repository/fathom/config.pbtxt, 1/model.py, 1/profile.json, 1/bundle/

It runs in Triton's Python backend, whose Python needs ``pip install fathom-recommender``.
"""

import shutil
from pathlib import Path

from fathom.artefacts import TRITON
from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import read_files, write_files
from fathom.files import new_folder, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import MANIFEST_NAME, sealed

MODEL = "fathom"
#: Not imported here: it needs what only Triton has.
_MODEL_FILE = Path(__file__).with_name("triton_model.py")


def write_triton(source: Path, out: Path, profile: DeviceProfile) -> str:
    """Write the repository and return the name of its model, which chooses depths as the profile says.

    Raises BundleError for a source that is refused, ConfigError for one whose engines are not ONNX, or whose depths the
    profile does not allow.
    """
    with Bundle.open(source) as bundle:
        manifest = bundle.manifest
        if manifest.format != "onnx":
            raise ConfigError(f"{source}: its engines are {manifest.format}; Triton needs onnx")
        if not set(profile.depths) & set(bundle.depths):
            raise ConfigError(f"{source}: it has no depth that profile {profile.name} allows")
        with new_folder(out, TRITON) as folder:
            version = folder / MODEL / "1"
            write_files(version / "bundle", read_files(bundle, manifest.files))
            write_json(version / "bundle" / MANIFEST_NAME, sealed(manifest).model_dump(mode="json"))
            write_json(version / "profile.json", profile.model_dump(mode="json"))
            shutil.copyfile(_MODEL_FILE, version / "model.py")
            (folder / MODEL / "config.pbtxt").write_text(_config(profile), encoding="utf-8")
    return MODEL


def _config(profile: DeviceProfile) -> str:
    """Histories of any lengths share a batch: the model pads them.

    The queue is left as it is by default: with a policy of its own, Triton 2.51 stalls one instance for 500 ms.
    """
    return f"""\
name: "{MODEL}"
backend: "python"
max_batch_size: {profile.max_batch}
dynamic_batching {{ }}
input [ {{ name: "item_ids", data_type: TYPE_STRING, dims: [ -1 ], allow_ragged_batch: true }} ]
input [ {{ name: "timestamps", data_type: TYPE_INT64, dims: [ -1 ], allow_ragged_batch: true, optional: true }} ]
input [ {{ name: "k", data_type: TYPE_INT32, dims: [ 1 ], optional: true }} ]
input [ {{ name: "depth", data_type: TYPE_INT32, dims: [ 1 ], optional: true }} ]
output [ {{ name: "recommended", data_type: TYPE_STRING, dims: [ -1 ] }} ]
output [ {{ name: "scores", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "depth_used", data_type: TYPE_INT32, dims: [ 1 ] }} ]
output [ {{ name: "why", data_type: TYPE_STRING, dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""
