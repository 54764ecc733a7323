"""What TensorRT has timed on a GPU, kept in a file, so that the next plan is built without timing it again."""

import logging
from pathlib import Path
from typing import Any

from fathom.artefacts import TIMING_CACHE, check_output
from fathom.files import write_bytes

log = logging.getLogger("fathom.exporter")


class TimingCache:
    """Of one library on one GPU, in a file or, without ``path``, for as long as it lives.

    The file begins with a line that names both. With a file of another library or GPU it begins anew, and logs a
    warning. Raises OutputError for a file that is none of ours.
    """

    def __init__(self, path: Path | None, library: str, gpu: str) -> None:
        self._path = path
        self._head = f"{TIMING_CACHE.mark}: {library} on {gpu}\n".encode()
        self._data = b""
        if path is not None and path.exists():
            check_output(path, TIMING_CACHE)
            head, _, data = path.read_bytes().partition(b"\n")
            if head + b"\n" == self._head:
                self._data = data
            else:
                log.warning("%s: of another GPU or version of TensorRT, and begun anew", path)

    def __len__(self) -> int:
        """Bytes."""
        return len(self._data)

    def attach(self, config: Any) -> None:
        """Let a build with this ``IBuilderConfig`` use it."""
        self._attached = config.create_timing_cache(self._data)  # has to live until the plan is built
        if self._attached is None or not config.set_timing_cache(self._attached, ignore_mismatch=False):
            log.warning("%s: TensorRT refuses this timing cache, and begins anew", self._path or "timing cache")
            self._attached = config.create_timing_cache(b"")
            config.set_timing_cache(self._attached, ignore_mismatch=False)

    def update(self) -> None:
        """Take what the build has timed."""
        self._data = bytes(self._attached.serialize())

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is not None:
            write_bytes(self._path, self._head + self._data)
