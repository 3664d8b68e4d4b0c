"""What thousands of fragments cost the driver, counted in calls and not in seconds."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

import lance
import pytest

from tests.support.scripted import ScriptedExecutor, many_fragments


def calls_per_fragment(path: Path, fragments: int, *, done: bool) -> float:
    """Return how many functions a backfill calls for each fragment, or one with nothing to do."""
    path.mkdir()
    table = many_fragments(path, fragments)
    if done:
        table.backfill("c", executor=ScriptedExecutor(), progress=False)
    profile = cProfile.Profile()
    profile.enable()
    # One commit: else their number would depend on the time that each takes.
    result = table.backfill(
        "c", executor=ScriptedExecutor(), progress=False, commit_granularity=10**6
    )
    profile.disable()
    assert result.fragments_committed == (0 if done else fragments)
    counted = lance.dataset(table.storage.uri).to_table(columns=["c"])["c"].to_pylist()
    assert counted == [1] * fragments
    return pstats.Stats(profile).total_calls / fragments  # type: ignore[attr-defined]


@pytest.mark.parametrize("done", [False, True], ids=["compute", "nothing-to-do"])
def test_each_fragment_is_compared_with_all_others(tmp_path: Path, done: bool) -> None:
    few = calls_per_fragment(tmp_path / "few", 400, done=done)
    many = calls_per_fragment(tmp_path / "many", 2_000, done=done)
    assert many < 1.1 * few  # fixed costs shrink; a loop within the loop would make it five times


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_hundred_thousand_fragments_are_too_many(tmp_path: Path) -> None:
    table = many_fragments(tmp_path, 100_000)
    result = table.backfill("c", executor=ScriptedExecutor(), progress=False)
    assert result.fragments_committed == result.rows_computed == 100_000
    assert not table.backfill("c", executor=ScriptedExecutor(), progress=False).versions
    assert lance.dataset(table.storage.uri).count_rows("c = 1") == 100_000
