"""The verbs of `geneva.Table` for a shell.

Exit codes follow the branches of `geneva.errors`: what the caller should do next.
"""

from __future__ import annotations

from geneva.cli.commands import app

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    app()
