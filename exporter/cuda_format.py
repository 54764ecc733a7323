"""A bundle whose engines onnxruntime can capture as CUDA graphs."""

from pathlib import Path

import numpy as np

from fathom.errors import ConfigError, ParityError
from fathom.exporter.another_bundle import copy_files, refuse_same_folder
from fathom.exporter.optional_exit import without_optional_exit
from fathom.files import new_folder, sha256_bytes, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engine import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, MANIFEST_NAME, FileEntry, Manifest, bundle_version

_CHECKED_LENGTHS = (1, 7, 200)


def convert_for_cuda(source: Path, out: Path) -> Manifest:
    """Write to ``out`` the bundle with engines that compute every exit they pass, and return its manifest.

    A graph holds no branches, and on a GPU an exit that is not read costs less than to leave it out. The second form
    stays as it is, for machines without a GPU. TensorRT plans and a certificate are left behind: they hold for the
    files that they were made from. Raises BundleError for a source that is refused, ConfigError for one whose engines
    are not ONNX or that is ``out``, ParityError when an engine has changed.
    """
    refuse_same_folder(source, out)
    with Bundle.open(source) as bundle:
        manifest = bundle.manifest
        if manifest.format != "onnx":
            raise ConfigError(f"{source}: its engines are {manifest.format}; only onnx can be converted")
        plans = {file for plan in manifest.plans for file in plan.segments.values()}
        files = {name: entry for name, entry in manifest.files.items() if name not in {CERTIFICATE_FILE, *plans}}
        with new_folder(out) as folder:
            copy_files(source, folder, files)
            for name in {name for info in manifest.depths.values() for name in info.segments}:
                data = without_optional_exit((source / name).read_bytes())
                (folder / name).write_bytes(data)
                files[name] = FileEntry(bytes=len(data), sha256=sha256_bytes(data))
            changed = {"files": files, "version": bundle_version(files), "fits": {}, "plans": ()}
            made = manifest.model_copy(update=changed)
            write_json(folder / MANIFEST_NAME, made.model_dump(mode="json"))
            with Bundle.open(folder) as converted:
                _check(bundle, converted)
    return made


def _check(source: Bundle, made: Bundle) -> None:
    rng = np.random.default_rng(0)
    most = 1e-3 if source.manifest.precision == "fp16" else 1e-5  # where fp16 rounds depends on what is fused
    with open_engine(source, device="cpu") as before, open_engine(made, device="cpu") as after:
        for length in _CHECKED_LENGTHS:
            items = rng.integers(1, source.manifest.items + 1, (2, min(length, source.manifest.model.max_history)))
            times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
            for depth in before.depths:
                error = np.abs(before.run(items, times, depth) - after.run(items, times, depth)).max()
                if not error <= most:
                    raise ParityError(f"depth {depth}: the engine for CUDA is off by {error:.2g}; convert it again")
