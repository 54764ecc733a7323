"""A bundle for onnxruntime's mobile builds: engines in the .ort format, and the list of operators that they need."""

import logging
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import onnxruntime

from fathom.exporter.bundle.derive import bound_to_engines, derive_bundle, open_source
from fathom.exporter.engines.quiet import quiet
from fathom.runtime.manifest import Manifest

#: Given to onnxruntime's build.py as --include_ops_by_config.
OPERATORS_FILE = "engines/required_operators.config"
MAX_ABS_ERROR = 1e-5


def convert_to_ort(source: Path, out: Path) -> Manifest:
    """Write to ``out`` the bundle with .ort engines and return its manifest; the source stays as it is.

    The engines are optimised for any processor, and checked against the source's. A certificate is left behind: it
    holds for the files that it was tested on. Raises BundleError for a source that is refused, ConfigError for one
    whose engines are not ONNX or that is ``out``, ParityError when an engine has changed.
    """
    with open_source(source, out) as bundle:
        bound = bound_to_engines(bundle)
        names = {name: _ort(name) for name in bundle.manifest.files if name.endswith(".onnx")}
        new = {ort: ort_engine(bundle.read(name)) for name, ort in names.items()}
        new[OPERATORS_FILE] = required_operators(new.values())
        changes = _renamed(bundle.manifest, names) | {"format": "ort", "fits": {}, "plans": ()}
        return derive_bundle(bundle, out, new, drop=bound.union(names), largest_error=MAX_ABS_ERROR, **changes)


def _ort(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".ort"))


def _renamed(manifest: Manifest, names: Mapping[str, str]) -> dict[str, Any]:
    """The keys of the manifest that name engines."""
    depths = {
        depth: info.model_copy(update={"segments": tuple(names[each] for each in info.segments)})
        for depth, info in manifest.depths.items()
    }
    extension = manifest.extension
    if extension is not None:
        segments = {depth: names[each] for depth, each in extension.segments.items()}
        steps = {depth: names[each] for depth, each in extension.steps.items()}
        changed = {"context": names[extension.context], "segments": segments, "steps": steps}
        extension = extension.model_copy(update=changed)
    return {"depths": depths, "extension": extension}


def ort_engine(engine: bytes) -> bytes:
    """An ONNX engine in the .ort format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.ort"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        # One level more would lay tensors out for the processor of this machine.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def required_operators(engines: Collection[bytes]) -> bytes:
    """The operators of .ort engines by domain and opset, as onnxruntime's build.py reads them."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    # The tool says what it does, and leaves files open.
    with tempfile.TemporaryDirectory() as folder, quiet(logging.INFO, ResourceWarning):
        paths = [Path(folder) / f"{place}.ort" for place, _ in enumerate(engines)]
        for path, data in zip(paths, engines, strict=True):
            path.write_bytes(data)
        config = Path(folder) / "operators"
        create_config_from_models(paths, config, False)
        # Without the comment that names the files of this machine.
        return b"".join(line for line in config.read_bytes().splitlines(keepends=True) if not line.startswith(b"#"))
