"""A Ray cluster of several real nodes, of which one joins and one vanishes during a backfill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.nodes import Nodes, NodesScene, in_child, scene

ROWS, FRAGMENTS, BATCH = 1200, 4, 2


def one_joins_and_one_vanishes(stage: NodesScene) -> None:
    with Nodes() as nodes:
        first = nodes.add(cpus=1)
        job = stage.begin(nodes, concurrency=2)
        stage.wait_for_work_on(first)
        second = nodes.add(cpus=1)
        stage.wait_for_work_on(second)
        nodes.lose(first)
        computed = len(stage.calls)
        stage.gate.open()
        result = job.wait(120)
        assert result.rows_computed == ROWS
        assert len(stage.calls) > computed, "somebody else must have gone on"
        assert set(stage.places.keys) == {first.node_id, second.node_id}


@pytest.mark.ray
def test_node_that_joins_works_and_one_that_vanishes_loses_only_batches_in_flight(
    tmp_path: Path,
) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=1, batch=BATCH).build()
    in_child(one_joins_and_one_vanishes, stage)
    replace(stage, arguments={"executor": "local"}).check_finished()
