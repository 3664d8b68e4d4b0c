"""``python -m tests.support.prose``: hold the summaries of docstrings to plain English.

A summary that begins with "What", or leans on it, has not found its noun. The check counts the word
in the first lines of all docstrings of the packages, per 1,000 words; six admired codebases have
0.0 to 0.3.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("geneva", "udfs")
MOST = 2.0  # "what" per 1,000 words
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Summary(NamedTuple):
    """The first line of a docstring, and where it stands."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, in lower case."""
        return re.findall(r"[a-z']+", self.text.lower())


def summaries(path: Path) -> Iterator[Summary]:
    """Yield the summary of every docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            line = node.body[0].lineno
            yield Summary(path, line, text.splitlines()[0])


def whats(found: list[Summary]) -> list[Summary]:
    """Return the summaries that use the word."""
    return [s for s in found if "what" in s.words]


def per_thousand(found: list[Summary]) -> float:
    """Return how often the word stands in 1,000 words."""
    words = [w for s in found for w in s.words]
    return 1000 * words.count("what") / max(len(words), 1)


def main() -> int:
    """Print the rate, and the places if there are too many."""
    paths = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
    found = [s for path in paths for s in summaries(path)]
    rate = per_thousand(found)
    print(f'docstring summaries: "what" {rate:.1f} times per 1,000 words (at most {MOST:g})')
    if rate <= MOST and "--list" not in sys.argv:
        return 0
    for s in whats(found):
        print(f"{s.path.relative_to(ROOT)}:{s.line}: {s.text}")
    return int(rate > MOST)


if __name__ == "__main__":
    sys.exit(main())
