"""Storage fails, or the process dies, at every storage call in turn; the same command mends it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from geneva.errors import GenevaError, RetryableError, TableChangedError
from tests.support.crashing import Scene

BATCH = 2


def scene(path: Path, kind: str) -> Scene:
    """Three fragments one after the other, or one fragment in spans by two appliers."""
    arguments = {"executor": "local", "batch_size": BATCH, "commit_granularity": 1}
    if kind == "fragments":
        return Scene(path, 24, 3, BATCH, arguments | {"concurrency": 1}).build()
    return Scene(path, 40, 1, 2 * BATCH, arguments | {"concurrency": 2}).build()


def fails_at(scene: Scene, n: int) -> None:
    scene.reset()
    try:
        scene.backfill(fail_at=n, mode="raise")
    except GenevaError as error:
        assert isinstance(error, RetryableError | TableChangedError), repr(error)
        assert "fault injected" in str(error), repr(error)
        assert scene.uri in str(error), repr(error)
    assert scene.counter.stat().st_size >= n
    # A run that got over the fault by itself may have lost the batch in flight as well.
    scene.check_finished(deaths=1)


def dies_at(scene: Scene, n: int) -> None:
    scene.reset()
    code = scene.run_in_child(fail_at=n)
    assert code in (-signal.SIGKILL, 0)  # 0: appliers shared the calls out in another order
    scene.check_finished(deaths=1)


@pytest.mark.parametrize("kind", ["fragments", "spans"])
def test_error_at_a_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    stage = scene(tmp_path, kind)
    for n in range(1, stage.storage_calls() + 1, 3):
        fails_at(stage, n)


@pytest.mark.parametrize("kind", ["fragments", "spans"])
def test_death_at_a_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    stage = scene(tmp_path, kind)
    for n in range(2, stage.storage_calls() + 1, 4):
        dies_at(stage, n)


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["fragments", "spans"])
def test_error_at_every_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    stage = scene(tmp_path, kind)
    total = stage.storage_calls()
    for n in range(1, total + 1):
        fails_at(stage, n)
    print(f"{kind}: survived an error at each of {total} storage calls")


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["fragments", "spans"])
def test_death_at_every_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    stage = scene(tmp_path, kind)
    total = stage.storage_calls()
    for n in range(1, total + 1):
        dies_at(stage, n)
    print(f"{kind}: survived SIGKILL at each of {total} storage calls")
