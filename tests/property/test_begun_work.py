"""Whatever stops a backfill, and whatever others do then: what was checkpointed is not computed.

Histories are made from seeds (`tests/support/begun.py`); calls are counted exactly.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.begun import histories

SEEDS = 25


def test_some_history_computes_again_what_was_checkpointed(tmp_path: Path) -> None:
    first = int(os.environ.get("GENEVA_SEED", "0"))
    stops = 0
    for world in histories(tmp_path, range(first, first + SEEDS)):
        stops += world.stops
        assert not world.left(), world.text
        shutil.rmtree(Path(world.uri).parent)
    assert stops > SEEDS / 2


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_one_of_many_histories_computes_again_what_was_checkpointed(tmp_path: Path) -> None:
    for world in histories(tmp_path, range(1000, 1400), most=6):
        shutil.rmtree(Path(world.uri).parent)
