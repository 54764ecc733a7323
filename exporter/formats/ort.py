"""A bundle for onnxruntime's mobile builds: engines in the .ort format, and the list of operators that they need."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import onnxruntime

from fathom.artefacts import BUNDLE
from fathom.exporter.bundle.derive import (
    check_same_answers,
    copy_files,
    lasting_files,
    refuse_same_folder,
    write_manifest,
)
from fathom.files import new_folder, sha256_bytes
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import FileEntry, Manifest

#: Given to onnxruntime's build.py as --include_ops_by_config.
OPERATORS_FILE = "engines/required_operators.config"
MAX_ABS_ERROR = 1e-5


def convert_to_ort(source: Path, out: Path) -> Manifest:
    """Write to ``out`` the bundle with .ort engines and return its manifest; the source stays as it is.

    The engines are optimised for any processor, and checked against the source's. A certificate is left behind: it
    holds for the files that it was tested on. Raises BundleError for a source that is refused, ConfigError for one
    whose engines are not ONNX or that is ``out``, ParityError when an engine has changed.
    """
    refuse_same_folder(source, out)
    with Bundle.open(source) as bundle:
        manifest = bundle.manifest
        lasting = lasting_files(source, manifest)
        names = {name: _ort(name) for name in manifest.files if name.endswith(".onnx")}
        files = {name: entry for name, entry in lasting.items() if name not in names}
        with new_folder(out, BUNDLE) as folder:
            copy_files(bundle, folder, files)
            (folder / OPERATORS_FILE).parent.mkdir(parents=True, exist_ok=True)
            for name, ort in names.items():
                _convert(bundle.read(name), folder / ort)
            (folder / OPERATORS_FILE).write_bytes(_operators([folder / ort for ort in names.values()]))
            for name in (*names.values(), OPERATORS_FILE):
                data = (folder / name).read_bytes()
                files[name] = FileEntry(bytes=len(data), sha256=sha256_bytes(data))
            converted = write_manifest(folder, _renamed(manifest, names, dict(sorted(files.items()))))
            with Bundle.open(folder) as made:
                check_same_answers(bundle, made, MAX_ABS_ERROR)
    return converted


def _ort(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".ort"))


def _renamed(manifest: Manifest, names: dict[str, str], files: dict[str, FileEntry]) -> Manifest:
    depths = {
        depth: info.model_copy(update={"segments": tuple(names[each] for each in info.segments)})
        for depth, info in manifest.depths.items()
    }
    extension = manifest.extension
    if extension is not None:
        segments = {depth: names[each] for depth, each in extension.segments.items()}
        extension = extension.model_copy(update={"context": names[extension.context], "segments": segments})
    changed = {"format": "ort", "depths": depths, "extension": extension, "files": files, "fits": {}, "plans": ()}
    return manifest.model_copy(update=changed)


def _convert(engine: bytes, out: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(out)
    # One level more would lay tensors out for the processor of this machine.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])


def _operators(engines: list[Path]) -> bytes:
    """The operators of these engines by domain and opset, as onnxruntime's build.py reads them."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "operators"
        create_config_from_models(engines, path, False)
        # Without the comment that names the files of this machine.
        return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b"#"))


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tool tells what it does, and leaves files open."""
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            yield
    finally:
        logging.disable(logging.NOTSET)
