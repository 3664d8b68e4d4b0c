"""The token of a service that was started without one, for clients of the same account.

Such a service makes a token, and writes it to a file that only its account may read. So `geneva
jobs`, `geneva.connect(jobs=...)` and whoever else has the account need no settings, and no other
account of the host may look or steer.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from urllib.parse import urlsplit

from geneva.storage.private import private_folder, replace_private

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def state_folder() -> Path:
    """Return the folder of this account in which services keep their lasting files."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "geneva"


def token_file(port: int) -> Path:
    """Return where the token of a service of this host is; homes may be shared by hosts."""
    return state_folder() / "access" / f"{platform.node()}-{port}"


def keep_token(port: int, token: str) -> Path:
    """Write a token down for the clients of this account; return where."""
    path = token_file(port)
    private_folder(path.parent)
    replace_private(path, token)
    return path


def forget_token(port: int, token: str) -> None:
    """Remove a token, unless another service has written its own meanwhile."""
    with contextlib.suppress(OSError):
        path = token_file(port)
        if path.read_text() == token:
            path.unlink()


def token_for(url: str) -> str | None:
    """Return the token for a service of this host, if this account runs it."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    if parts.hostname not in LOOPBACK:
        return None
    try:
        return token_file(port).read_text() or None
    except OSError:
        return None
