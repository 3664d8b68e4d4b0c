"""The secrets that a service was started with: kept from drivers, appliers and other accounts.

A UDF may print its environment, and whoever may look reads that in a log. So tokens and passwords
are taken out of the environment and the command line once they were read, and a driver is told what
it needs by a pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from geneva.errors import ServiceError

_URL = "GENEVA_JOBS"  # may hold a password
_NAMES = ("GENEVA_TOKEN", "GENEVA_VIEWER_TOKEN", "PGPASSWORD", _URL)
_ARG_START = 45  # of the fields of /proc/self/stat after the name; the end, and the environment's


@dataclass(frozen=True, slots=True)
class Orders:
    """The secrets that a driver is handed and nobody else may read.

    Attributes
    ----------
    url
        Of the database of jobs, with its password.
    logs
        Folder of the job's logs.
    allowed
        Databases that it may open.
    """

    url: str
    logs: str
    allowed: tuple[str, ...]

    def send(self, pipe: IO[bytes]) -> None:
        """Write them, and close the pipe."""
        with contextlib.suppress(BrokenPipeError), pipe:  # a driver that died is found gone
            pipe.write(json.dumps(asdict(self)).encode())

    @classmethod
    def receive(cls) -> Orders:
        """Read them from stdin, which is empty from then on.

        Raises
        ------
        ServiceError
            Whoever started this process died before it had told all.
        """
        text = sys.stdin.buffer.read()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            raise ServiceError("the scheduler did not tell this driver what to do") from None


def for_drivers(environment: Mapping[str, str], secrets: Iterable[str]) -> dict[str, str]:
    """Return an environment without variables that hold a secret, whatever their name."""
    known = _known(environment, secrets)
    return {k: v for k, v in environment.items() if not _holds(k, v, known)}


def _known(environment: Mapping[str, str], secrets: Iterable[str]) -> set[str]:
    """Return the secrets, with those that an environment calls so."""
    held = (environment.get(n, "") for n in _NAMES if n != _URL)
    return {s for s in (*secrets, *held) if s}


def _holds(name: str, value: str, secrets: Iterable[str]) -> bool:
    # As a part only where it stands as a URL's password: a short one is part of other words too.
    return name in _NAMES or any(value == s or f":{s}@" in value for s in secrets)


def conceal(secrets: Iterable[str]) -> None:
    """Take the secrets out of this process's environment and of its command line.

    Children do not inherit them then, and other processes do not see them in ``/proc``, which shows
    the memory that the kernel filled when the process started.
    """
    known = _known(os.environ, secrets)
    names = [k for k, v in os.environ.items() if _holds(k, v, known)]
    for name in names:
        del os.environ[name]
    if not sys.platform.startswith("linux"):
        return  # nowhere else can others read it, but those of the same account and root
    with contextlib.suppress(OSError, ValueError, IndexError):  # /proc is not there, or says less
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        places = [int(f) for f in fields[_ARG_START : _ARG_START + 4]]
        _overwrite(places[0], places[1], [rf"(?<=:){re.escape(s)}(?=@)" for s in known])
        _overwrite(places[0], places[1], [rf"(?<=\0){re.escape(s)}(?=\0)" for s in known])
        _overwrite(places[2], places[3], [rf"(?<![^\0]){re.escape(n)}=[^\0]*" for n in names])


def _overwrite(start: int, end: int, patterns: Iterable[str]) -> None:
    """Overwrite the matches of patterns in memory of this process with as many stars."""
    if not start or end <= start:
        return
    before = data = ctypes.string_at(start, end - start)
    for pattern in patterns:
        data = re.sub(os.fsencode(pattern), lambda m: b"*" * len(m[0]), data)
    if data != before:
        ctypes.memmove(start, data, len(data))
