"""Programs of Debian's packages that some tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def found_or_installed(find: Callable[[], T | None], package: str) -> T | None:
    """Return what is found; where that is nothing, have apt install it if it can."""
    if find() is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        quietly = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
            subprocess.run(
                ["apt-get", "-qq", *command],
                stdout=subprocess.DEVNULL,
                env=quietly,
                check=False,
            )
    return find()
