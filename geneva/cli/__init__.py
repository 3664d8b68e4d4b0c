"""The verbs of `geneva.Table` for a shell.

Exit codes follow the branches of `geneva.errors`: what the caller should do next.
"""

from __future__ import annotations

import sys

from geneva.interrupts import uninterrupted

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        with uninterrupted():
            from geneva.cli.commands import app
        app()
    except KeyboardInterrupt:  # before or behind the command itself
        print("geneva: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
