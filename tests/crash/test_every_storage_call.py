"""Storage fails, or the process dies, at every storage call in turn; the same command mends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from geneva import Windows
from geneva.errors import GenevaError, RetryableError, TableChangedError
from tests.support.crashing import Scene

BATCH = 2
KINDS = ["fragments", "spans", "slices", "stages"]


def scene(path: Path, kind: str) -> Scene:
    """Three fragments one after the other, one in spans by two appliers, or cut into windows."""
    arguments = {"executor": "local", "batch_size": BATCH, "commit_granularity": 1}
    if kind == "fragments":
        return Scene(path, 24, 3, BATCH, arguments | {"concurrency": 1}).build()
    if kind in ("slices", "stages"):  # windows of five rows over fragments of eight
        commit = "fragment" if kind == "slices" else "window"
        windows = Windows("x", start=0, end=24, step=5, order="backward", commit=commit)
        arguments |= {"concurrency": 1, "windows": windows}
        return Scene(path, 24, 3, BATCH, arguments).build()
    return Scene(path, 40, 1, 2 * BATCH, arguments | {"concurrency": 2}).build()


def fails_at(scene: Scene, n: int) -> bool:
    scene.reset()
    seen: GenevaError | None = None
    try:
        scene.backfill(fail_at=n, mode="raise")
    except GenevaError as error:
        seen = error
    # Nothing but an error that says what happened, where, and what to do may reach the user.
    assert seen is None or isinstance(seen, RetryableError | TableChangedError), repr(seen)
    assert seen is None or "fault injected" in str(seen), repr(seen)
    assert seen is None or scene.uri in str(seen), repr(seen)
    acted = scene.counter.stat().st_size >= n
    # A run that got over the fault by itself may have lost the batch in flight as well.
    scene.check_finished(deaths=1)
    return acted


def dies_at(scene: Scene, n: int) -> bool:
    scene.reset()
    code = scene.run_in_child(fail_at=n)
    assert code in (-signal.SIGKILL, 0)
    scene.check_finished(deaths=1)
    return code != 0


def survive(act: Callable[[Scene, int], bool], stage: Scene, step: int = 1) -> int:
    """Act at every ``step``-th call; no two runs make quite the same number of them."""
    chosen = range(1, stage.storage_calls() + 1, step)
    acted = sum(act(stage, n) for n in chosen)
    assert acted >= 0.8 * len(chosen)
    return acted


@pytest.mark.parametrize("kind", KINDS)
def test_error_at_a_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    survive(fails_at, scene(tmp_path, kind), step=4)


@pytest.mark.parametrize("kind", KINDS)
def test_death_at_a_storage_call_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    survive(dies_at, scene(tmp_path, kind), step=4)


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_error_at_every_storage_call_loses_and_repeats_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    survived = survive(fails_at, scene(tmp_path, kind))
    with capsys.disabled():
        print(f"\n{kind}: survived an error at each of {survived} storage calls")


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_death_at_every_storage_call_loses_and_repeats_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    survived = survive(dies_at, scene(tmp_path, kind))
    with capsys.disabled():
        print(f"\n{kind}: survived SIGKILL at each of {survived} storage calls")


def test_span_of_one_quick_batch_is_not_computed_twice(tmp_path: Path) -> None:
    arguments = {"executor": "local", "batch_size": 10, "concurrency": 2}
    stage = Scene(tmp_path, 40, 1, 0, arguments).build()
    assert stage.backfill().rows_computed == 40
    assert set(stage.calls.counts.values()) == {1}
    stage.check_finished(deaths=0)
