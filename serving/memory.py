"""Memory allocation and garbage collection of a server."""

import ctypes
import gc

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 128 << 10


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


def tidy() -> None:
    """Collect garbage, then exclude everything still alive from later collections.

    Called when bundles have been opened or closed. Scanning their objects again and again for the garbage of requests
    would delay requests.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
