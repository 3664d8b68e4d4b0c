"""One driver and 160 appliers, hosted by few processes as in the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.appliers import HostedExecutor, backfill, busy_share, gpus
from tests.support.nodes import in_child
from tests.support.tables import pairs

APPLIERS, TASKS_EACH = 160, 2


def many(path: Path) -> None:
    with gpus(APPLIERS):
        calls, result = backfill(path, APPLIERS, TASKS_EACH, HostedExecutor(), call_s=1.0)
    assert result.fragments_committed == APPLIERS * TASKS_EACH
    assert len(calls) * 2 == result.rows_computed, "no batch was computed twice"
    edges = sorted([(c[0], 1) for c in calls] + [(c[1], -1) for c in calls])
    at_once = most = 0
    for _, step in edges:
        at_once += step
        most = max(most, at_once)
    assert most == APPLIERS, "all of them worked at once"


@pytest.mark.ray
@pytest.mark.slow
def test_160_appliers_work_at_once_and_compute_every_row_once(tmp_path: Path) -> None:
    in_child(many, tmp_path)
    from benchmarks.tables import opened

    table = opened(tmp_path)
    values = pairs(table, "x", "c")
    assert values == {x: x for x in values}


def test_busy_share_counts_the_middle_half_only() -> None:
    assert busy_share([[0.0, 8.0], [2.0, 4.0]], 2) == 0.75
