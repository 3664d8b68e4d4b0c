"""Which process this is, and whether another one has certainly ended.

A process id alone is not enough: ids are used again, and two containers with one host name count
their processes from 1 each. So ids are compared within one *space* only (the boot and the pid
namespace), and together with the moment at which the process started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_SILENT_S = 3600.0  # without a sign of life, by the clocks of two hosts
_ENDED = ("Z", "X")  # states of a process that has ended and was not collected by its parent


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, as other processes can know it.

    Attributes
    ----------
    host
        For people.
    space
        Within which ``pid`` means anything; empty if that could not be found out.
    started
        When it started, in whatever form the system tells it; empty if it does not.
    """

    host: str
    space: str
    pid: int
    started: str

    @property
    def here(self) -> bool:
        """Whether it is of this host, so that it can be looked at and killed."""
        return bool(self.space) and self.space == _space()

    @property
    def gone(self) -> bool:
        """Whether it has certainly ended; of a process of another space nothing is certain."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is somebody else's, so it is there
        started = _started(self.pid)
        return bool(started and self.started) and started != self.started

    def may_work(self, sign_s: float) -> bool:
        """Whether it may still be at work, given its latest sign of life, in Unix time.

        A process of this host is asked for; another one counts as gone after an hour of silence.
        """
        return not self.gone if self.here else time.time() - sign_s < _SILENT_S

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> ProcessId:
    """Return the id of the calling process."""
    return _this(os.getpid())  # by pid, as a forked child has the cache of its parent


@lru_cache(maxsize=1)
def _this(pid: int) -> ProcessId:
    return identify(pid)


def identify(pid: int) -> ProcessId:
    """Return the id of a process of this host; a child that was not collected keeps its id."""
    return ProcessId(platform.node(), _space(), pid, _started(pid))


def marked(name: str, value: str) -> list[int]:
    """Return the processes of this host and user that inherited a variable, but this one.

    Only Linux tells; elsewhere none is found.
    """
    variable = f"{name}={value}".encode()
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # another user's, or it ended just now
        pid = int(folder.name)
        if variable in environment and pid != os.getpid() and _started(pid) not in ("", "ended"):
            pids.append(pid)
    return pids


def end_marked(name: str, value: str) -> int:
    """Kill the processes that `marked` returns; return how many there were."""
    pids = marked(name, value)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


@lru_cache(maxsize=1)
def _space() -> str:
    if not sys.platform.startswith("linux"):
        # No pid namespaces there; the start time, a date, tells one boot from the next.
        return f"{platform.node()}-{uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}-{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, "ended" if it did end, nothing if that is hidden."""
    if not sys.platform.startswith("linux"):
        command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        state, _, started = text.strip().partition(" ")
        return _moment(state[:1], started.strip()) if started else ""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""  # hidden from this user, or it ended just now
    # The name, second and in parentheses, may hold anything, spaces and parentheses too.
    fields = text.rpartition(")")[2].split()
    return _moment(fields[0], fields[19])


def _moment(state: str, started: str) -> str:
    return "ended" if state in _ENDED else started
