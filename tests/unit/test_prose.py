"""The check of the docstrings' prose counts what it says."""

from __future__ import annotations

from pathlib import Path

from tests.support import prose


def test_word_is_counted_in_first_lines_of_docstrings_only(tmp_path: Path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""What stands here.\n\nWhat stands below does not count."""\n\n'
        'def f():\n    """Name the noun."""\n    # what a comment says\n'
    )
    found = list(prose.summaries(module))
    assert [s.text for s in found] == ["What stands here.", "Name the noun."]
    assert [s.line for s in prose.whats(found)] == [1]
    assert prose.per_thousand(found) == 1000 / 6


def test_packages_keep_below_the_limit():
    assert prose.main() == 0
