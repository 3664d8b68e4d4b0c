"""Files and folders that only their owner may read, whatever the umask says.

What jobs leave behind holds inputs of rows and what UDFs print, and not every account of a host may
see those. What an earlier version left open is tightened when it is next used.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FILE, _FOLDER = 0o600, 0o700


def private_folder(path: Path) -> None:
    """Make a folder for its owner; one that is there stays as it is, and so do those above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(_FOLDER)
        path.chmod(_FOLDER)  # a umask takes bits away, and a default ACL may add some


def private_file(path: str, flags: int) -> int:
    """Open a file, as an ``opener`` of `open`: a new one is its owner's."""
    fd = os.open(path, flags, _FILE)
    if os.fstat(fd).st_size == 0:  # it is new; a umask may have taken bits of ours
        _keep_to_owner(fd, _FILE)
    return fd


def new_private_file(path: Path) -> None:
    """Make an empty file for its owner, unless there is one; nobody sees it open."""
    fd, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600
    os.close(fd)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.unlink(made)


def replace_private(path: Path, text: str) -> None:
    """Write a file for its owner, whole or not at all."""
    fd, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600
    with open(fd, "w") as file:
        file.write(text)
    os.replace(made, path)


def tighten(path: Path) -> None:
    """Take from others their rights to a file or a folder, if it is ours and no link."""
    with contextlib.suppress(OSError):  # it is gone, or somebody else's, who decides about it
        found = path.lstat()
        ours = found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode)
        if ours and stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(stat.S_IMODE(found.st_mode) & 0o700)


def tighten_all(folder: Path) -> None:
    """Tighten a folder and all that is in it."""
    tighten(folder)
    for path in _within(folder):
        tighten(path)


def _within(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def _keep_to_owner(fd: int, mode: int) -> None:
    with contextlib.suppress(OSError):  # another account's file
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
