"""The memory of this process: how much it was at most, and that what is freed is given back."""

from __future__ import annotations

import ctypes
import resource
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3), in glibc
_LARGE_BYTES = 8 << 20


def peak_bytes() -> int:
    """Return the most memory that this process was resident with, in bytes, since it started.

    Pages of programs and libraries that it shares with others are counted in full.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_large() -> None:
    """Have large blocks go back to the system as soon as they are freed, where this is glibc.

    It would come to keep blocks of up to 32 MB for itself, in as many heaps as there are threads.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)
