"""A PostgreSQL server on loopback for one test run, from whatever package installed it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.apt import found_or_installed


def programs() -> Path | None:
    """Return the folder of initdb, which apt installs where it can."""
    return found_or_installed(_found, "postgresql")


def _found() -> Path | None:
    """Look for it where Debian keeps it too, off the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextmanager
def server(bin_folder: Path) -> Iterator[str]:
    """Yield the URL of a fresh server, without the database's name."""
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="gv-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    port = _free_port()

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(bin_folder / program), *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    call("initdb", "-D", str(data), "-U", "geneva", "-A", "trust", "-E", "UTF8", "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
    try:
        yield f"postgresql://geneva@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str | None:
    """Return another user than root, as whom PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return None
    known = {p.pw_name for p in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
