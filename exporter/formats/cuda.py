"""A bundle whose engines onnxruntime can capture as CUDA graphs."""

from pathlib import Path

from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import bound_to_engines, derive_bundle, open_source
from fathom.exporter.engines.optional_exit import without_optional_exit
from fathom.runtime.manifest import Manifest


def convert_for_cuda(source: Path, out: Path) -> Manifest:
    """Write to ``out`` the bundle with engines that compute every exit they pass, and return its manifest.

    A graph holds no branches, and on a GPU computing an exit that is not read costs less than leaving it out. Engines
    for incremental inference stay as they are, for machines without a GPU. TensorRT plans and a certificate are left
    behind: they hold for the files that they were made from. Raises BundleError for a source that is refused,
    ConfigError for one whose engines are not ONNX, or in fewer bits than a GPU runs, or that is ``out``, ParityError
    when an engine has changed.
    """
    with open_source(source, out) as bundle:
        manifest = bundle.manifest
        drop = bound_to_engines(bundle)
        if manifest.precision not in ("fp32", "fp16"):
            raise ConfigError(f"{source}: in {manifest.precision}; a GPU runs fp32 and fp16")
        engines = {name for info in manifest.depths.values() for name in info.segments}
        new = {name: without_optional_exit(bundle.read(name)) for name in engines}
        most = 1e-3 if manifest.precision == "fp16" else 1e-5  # where fp16 rounds depends on what is fused
        return derive_bundle(bundle, out, new, drop=drop, largest_error=most, fits={}, plans=())
