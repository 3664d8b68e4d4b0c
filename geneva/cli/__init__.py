"""The verbs of `geneva.Table` for a shell.

Exit codes follow the branches of `geneva.errors`: what the caller should do next.
"""

from __future__ import annotations

import sys

from geneva.interrupts import INTERRUPTED, interrupt_is_raised, uninterrupted

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        with uninterrupted():
            from geneva.cli.answers import said_wrong
            from geneva.cli.commands import app
            from geneva.cli.streams import fit_for_any_terminal, flush
        interrupt_is_raised()
        fit_for_any_terminal()
        try:
            code = app(standalone_mode=False)
        except Exception as error:
            code = said_wrong(error, as_json="--json" in sys.argv)
            if code is None:
                raise
        flush()
    except KeyboardInterrupt:  # before or behind the command itself
        print("geneva: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
