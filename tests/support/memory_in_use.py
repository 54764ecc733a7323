"""What the C library has given out, which says more than what the process has from the system."""

import ctypes


class _Mallinfo(ctypes.Structure):
    """Of glibc's malloc.h."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


def used_bytes() -> int:
    """Bytes in use of what malloc manages, in glibc."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    return int(mallinfo().uordblks)
