"""A bundle whose engines onnxruntime can capture as CUDA graphs."""

from pathlib import Path

from fathom.artefacts import BUNDLE
from fathom.exporter.bundle.derive import (
    check_same_answers,
    copy_files,
    lasting_files,
    refuse_same_folder,
    write_file,
    write_manifest,
)
from fathom.exporter.engines.optional_exit import without_optional_exit
from fathom.files import new_folder
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import Manifest


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
        files = lasting_files(source, manifest)
        most = 1e-3 if manifest.precision == "fp16" else 1e-5  # where fp16 rounds depends on what is fused
        with new_folder(out, BUNDLE) as folder:
            engines = {name for info in manifest.depths.values() for name in info.segments}
            copy_files(bundle, folder, files.keys() - engines)
            for name in engines:
                files[name] = write_file(folder, name, without_optional_exit(bundle.read(name)))
            changed = {"files": files, "fits": {}, "plans": ()}
            made = write_manifest(folder, manifest.model_copy(update=changed))
            with Bundle.open(folder) as converted:
                check_same_answers(bundle, converted, most)
    return made
