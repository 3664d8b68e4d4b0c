"""Appliers of one process share its CPUs, and so do the thread pools of what their UDFs call."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, ClassVar


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
        """Give the process what it had."""
        with Pools._lock:
            held = self in Pools._holding
            Pools._holding.discard(self)
            if held and not Pools._holding:
                sys.modules["torch"].set_num_threads(Pools._before)


def share_of_cpus(appliers: int, reserved: float) -> int:
    """Return the CPUs that each of some appliers of this process has."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, round(reserved), (there or 1) // max(1, appliers))
