"""Memory allocation and garbage collection of a server."""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 128 << 10
# Of Linux's mman-common.h.
_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ \S+ +/")


def use_memory_sparingly() -> None:
    """Give large blocks back to the system when they are freed, and keep small ones in one heap for all threads.

    What is kept of histories comes and goes all the time, in all sizes and between two threads. By default it leaves
    holes in several heaps, which grow for as long as the server runs. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def peak_mb(pid: int | None = None) -> float | None:
    """The most memory that a process has had resident, this one's without ``pid``; None where the kernel does not say.

    In MB of 2**20 bytes.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def tidy() -> None:
    """Collect garbage, then exclude everything still alive from later collections.

    Called when bundles have been opened or closed. Scanning their objects again and again for the garbage of requests
    would delay requests.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Return memory that only starting needed: freed blocks, and what was read of programs and libraries.

    A third of a small server's resident memory is code that has run once. It is unchanged from its file, so the kernel
    maps it again, mostly from its page cache, where it does run again. Does nothing where there is no Linux with glibc.
    """
    gc.collect()
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for start, end in _unchanged(Path("/proc/self/smaps").read_text()):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _unchanged(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and end of the private, read-only mappings of files in which nothing was ever written.

    Tables that the loader fills in and then protects are read-only too, but hold pages of their own.
    """
    found = None
    for line in smaps.splitlines():
        if line.startswith("Anonymous:"):
            if found and line.split()[1] == "0":
                yield int(found[1], 16), int(found[2], 16)
        elif "-" in line.partition(" ")[0]:
            found = _MAPPING.match(line)
