"""The power fails at every moment of a backfill; the same command mends it.

The order of writes that this holds is in docs/decisions/010-order-of-writes.md.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import pytest

import geneva
from geneva.appliers import units
from geneva.errors import CorruptFileError
from geneva.storage import objects
from tests.support.backfills import times
from tests.support.crashing import Scene
from tests.support.power import Disk, Moment, PoweredStorage
from tests.support.tables import pairs

BATCH = 2
KINDS: dict[str, tuple[int, int, dict[str, int]]] = {
    # rows, fragments, arguments
    "fragments": (18, 3, {"concurrency": 1, "commit_granularity": 1}),
    "together": (18, 3, {"concurrency": 1, "commit_granularity": 2}),
    "spans": (24, 1, {"concurrency": 2, "commit_granularity": 1}),
    "quick": (6, 3, {"concurrency": 1, "commit_granularity": 2}),  # one batch each
}


@pytest.fixture
def scene(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A table of which nothing is computed; every batch is recorded unless it is the only one."""
    if kind != "quick":
        monkeypatch.setattr(units, "_HELD_S", 0.0)
    rows, fragments, arguments = KINDS[kind]
    chosen = {"executor": "local", "batch_size": BATCH} | arguments
    return Scene(tmp_path, rows, fragments, BATCH * arguments["concurrency"], chosen).build()


@pytest.fixture
def every_append_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes between any two appends."""
    monkeypatch.setattr(objects, "SYNC_INTERVAL_S", 0.0)


def moments_of(stage: Scene, act: Callable[[geneva.Table], Any]) -> list[tuple[Moment, int]]:
    """Act; return all moments at which the power may fail, and the UDF calls made by then."""
    calls: list[int] = []

    class Counting(Disk):
        def note(self, what: str) -> None:
            super().note(what)
            calls.extend([len(stage.calls)] * (len(self.moments) - len(calls)))

    disk = Counting(stage.uri)
    storage = PoweredStorage(stage.uri, counter=str(stage.counter), disk=disk)
    try:
        with disk.watching():
            act(stage.table(storage))
    finally:
        disk.close()
    return list(zip(disk.moments, calls, strict=True))


def open_after(stage: Scene, moment: Moment) -> geneva.Table:
    """Open the table; move away a version that the failure tore, as the error says."""
    for _ in range(3):
        try:
            table = stage.table()
            table.computed_columns()
            return table
        except CorruptFileError as error:
            message = str(error)
        found = re.search(r"torn by a power failure: (\S+\.manifest) is incomplete", message)
        assert found is not None, message
        inode = moment.names["_versions"][Path(found[1]).name]
        assert moment.safe_data.get(inode) != moment.data[inode], "a synced version was torn"
        Path(found[1]).unlink()
    raise AssertionError("it cannot be opened")


def check_readers(stage: Scene) -> None:
    """Each fragment's values are all there, or none is."""
    for fragment in lance.dataset(stage.uri).get_fragments():
        rows = fragment.to_table(columns=["x", "y"])
        values = rows["y"].to_pylist()
        assert values in ([None] * len(values), [2 * x for x in rows["x"].to_pylist()])


def fails_at(stage: Scene, moment: Moment, chance: random.Random | None) -> set[str]:
    """Build what a power failure leaves and run the same command; return what it computed."""
    moment.build(Path(stage.uri), chance)
    # This process has not died, as every claim from before a power failure has: none waits for it.
    shutil.rmtree(Path(stage.uri) / "_backfill" / "claims", ignore_errors=True)
    stage.calls.clear()
    open_after(stage, moment)
    check_readers(stage)
    stage.backfill()
    assert pairs(stage.table(), "x", "y") == {i: 2 * i for i in range(stage.rows)}, moment.what
    computed = stage.calls.counts
    assert not computed or max(computed.values()) == 1, moment.what
    return set(computed)


def chances(seeds: int, at: int) -> Iterator[random.Random | None]:
    yield None  # nothing but what is safe
    yield from (random.Random(1000 * seed + at) for seed in range(seeds))


def survive(stage: Scene, *, synced: bool, step: int, seeds: int) -> tuple[int, int]:
    """Let the power fail at every ``step``-th moment; return how often it did, and the moments.

    What would have survived one failure survives every later one. When every append is synced,
    nothing is computed again but batches in flight.
    """
    moments = moments_of(stage, lambda t: t.backfill("y", progress=False, **stage.arguments))
    open_to_loss = {str(x) for x in range(stage.rows)}
    failures = 0
    for at, (moment, called) in enumerate(moments):
        if at % step and at != len(moments) - 1:
            continue
        for chance in chances(seeds, at):
            again = fails_at(stage, moment, chance)
            failures += 1
            assert again <= open_to_loss, (at, moment.what, again - open_to_loss)
            if chance is None:
                open_to_loss = again
            if synced:
                lost = len(again) - (stage.rows - called)
                assert lost <= stage.in_flight, (at, moment.what, sorted(again))
    assert not open_to_loss, "the values of a backfill that returned are not safe"
    return failures, len(moments)


@pytest.mark.parametrize("kind", ["fragments", "quick"])
def test_power_failure_takes_nothing_that_was_synced(
    scene: Scene, every_append_synced: None
) -> None:
    survive(scene, synced=True, step=11, seeds=1)


@pytest.mark.parametrize("kind", ["together"])
def test_power_failure_between_syncs_takes_no_committed_value(scene: Scene) -> None:
    survive(scene, synced=False, step=11, seeds=1)


@pytest.mark.parametrize("kind", ["quick"])
def test_power_failure_while_a_udf_is_bound_leaves_a_column_that_works_or_none(
    scene: Scene,
) -> None:
    triple = times(scene.calls, 3)
    moments = moments_of(scene, lambda t: t.add_columns({"z": triple}))
    bound = []
    for at, (moment, _) in enumerate(moments):
        for chance in chances(2, at):
            moment.build(Path(scene.uri), chance)
            table = open_after(scene, moment)
            bound.append("z" in table.schema.names)
            if bound[-1]:
                table.backfill("z", executor="local", progress=False)
                assert pairs(scene.table(), "x", "z") == {i: 3 * i for i in range(scene.rows)}
    assert not bound[0]
    assert bound[-1], "what add_columns has returned from is safe"


@pytest.mark.crash
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("synced", [True, False], ids=["synced", "unsynced"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_power_failure_at_every_moment(
    scene: Scene,
    kind: str,
    synced: bool,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if synced:
        request.getfixturevalue("every_append_synced")
    failures, moments = survive(scene, synced=synced, step=1, seeds=4)
    with capsys.disabled():
        print(f"\n{kind}: survived {failures} power failures at {moments} moments")
