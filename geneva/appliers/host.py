"""The share of its host that a process takes: CPUs that UDFs use, and memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from typing import Any, ClassVar

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


class Pools:
    """Holds torch to an applier's share of the CPUs while a job lasts.

    On Ray each applier is a process of its own, and Ray tells OpenMP of its CPUs as it starts.

    Parameters
    ----------
    cpus
        Threads that one call may use.
    """

    _lock = threading.Lock()
    _holding: ClassVar[set[Pools]] = set()  # more than one job of a process may be under way
    _before = 0

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._thread = threading.local()

    def follow(self) -> None:
        """Have the calling thread use no more; cheap to ask again."""
        if "torch" not in sys.modules or getattr(self._thread, "follows", False):
            return
        torch: Any = sys.modules["torch"]
        # It is there, and half of it, while another thread imports it.
        if not hasattr(torch, "set_num_threads") or not hasattr(torch, "get_num_threads"):
            return
        with Pools._lock:
            if not Pools._holding:
                Pools._before = torch.get_num_threads()
            Pools._holding.add(self)
            torch.set_num_threads(min(self._cpus, Pools._before))
        self._thread.follows = True

    def restore(self) -> None:
        """Give the process back the threads that it had."""
        with Pools._lock:
            held = self in Pools._holding
            Pools._holding.discard(self)
            if held and not Pools._holding:
                sys.modules["torch"].set_num_threads(Pools._before)


def share_of_cpus(appliers: int, reserved: float) -> int:
    """Return the CPUs that each of some appliers of this process has."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, round(reserved), (there or 1) // max(1, appliers))
