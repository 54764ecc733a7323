"""The NVIDIA GPU of this machine, in the words that a TensorRT plan has for the one it was built for."""

import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """``capability``: compute capability, as 8.7. ``name``: what the driver says, ``Orin, 8 multiprocessors``.

    The name alone is not enough: the GPUs of all Orins have the same.
    """

    capability: str
    name: str


def this_gpu() -> Gpu | None:
    """The first GPU, or None where none can be used."""
    try:
        from cuda.bindings import runtime as cuda
    except ImportError:
        return None
    error, found = cuda.cudaGetDeviceProperties(0)
    if int(error) != 0:
        return None
    name = found.name.split(b"\0")[0].decode(errors="replace")
    return Gpu(f"{found.major}.{found.minor}", f"{name}, {found.multiProcessorCount} multiprocessors")


def this_platform() -> str:
    """Operating system and architecture, as ``linux-aarch64``."""
    return f"{sys.platform}-{platform.machine()}"
