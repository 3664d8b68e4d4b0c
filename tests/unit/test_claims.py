"""Claims alone: when they end, what they cost, who gives what away; a clock that the test sets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.file import LanceFileSession

from geneva.engine import process
from geneva.engine.claims import FOLDER, LEASE_S, Claim, Claims
from geneva.engine.process import ProcessId, this_process
from geneva.storage.objects import LocalObjects
from geneva.storage.remote import RemoteObjects

ELSEWHERE = ProcessId("elsewhere", "another-boot", 1, "1")


TEXT = st.text('ab é{"', max_size=5)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Counted(LocalObjects):
    """Counts its calls; fails if told to."""

    root: Path
    calls: Counter[str] = field(default_factory=Counter)
    broken: bool = False

    def __post_init__(self) -> None:
        super().__init__(str(self.root))

    def _count(self, name: str) -> None:
        self.calls[name] += 1
        if self.broken:
            raise OSError("the disk is gone")

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._count("put, synced" if durable else "put")
        super().put(path, data, durable=durable)

    def get(self, path: str) -> bytes:
        self._count("get")
        return super().get(path)

    def list(self, folder: str) -> list[str]:
        self._count("list")
        return super().list(folder)

    def delete(self, path: str) -> None:
        self._count("delete")
        super().delete(path)


@pytest.fixture
def objects(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def driver(objects: Counted, clock: Clock, job: str = "job") -> Claims:
    return Claims(objects, "col", job, clock=clock)


def claim(holds: set[int], wants: set[int] = frozenset(), *, beat: int = 0) -> Claim:
    return Claim("other", ELSEWHERE, LEASE_S, beat, frozenset(holds), frozenset(wants))


def put(objects: Counted, said: Claim, name: str = "other") -> None:
    LocalObjects.put(objects, f"{FOLDER}/col/{name}.json", said.dumps())


def refreshed(claims: Claims, clock: Clock, not_begun: list[int]) -> frozenset[int]:
    clock.now += 1.0
    assert claims.due
    return claims.refresh(not_begun)


# --- alone --------------------------------------------------------------------------------


def test_lone_driver_pays_for_each_fragment(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    assert claims.begin(range(1000), None) == set(range(1000))
    for k in range(1000):
        claims.settle([k])
        assert not claims.due
    claims.release()
    assert objects.calls == {"list": 2, "put": 1, "delete": 1}  # and nothing is synced


def test_lone_driver_writes_at_every_look(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    claims.begin([1, 2, 3], None)
    for _ in range(int(LEASE_S)):
        assert not refreshed(claims, clock, [2, 3])
    assert objects.calls["put"] <= 1 + 6  # it lives: a sign of that six times in a lease


def test_driver_without_work_leaves_the_store_alone(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    assert not claims.begin([], None)
    claims.release()
    assert not objects.calls


def test_more_is_claimed_than_num_frags_allows(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    assert claims.begin([3, 4, 5], 2) == {3, 4}
    assert claims.begin([3, 4, 5], 2) == {3, 4}
    assert claims.left == {5}


def test_store_that_fails_stops_no_driver(objects: Counted, clock: Clock) -> None:
    objects.broken = True
    claims = driver(objects, clock)
    assert claims.begin([1, 2], None) == {1, 2}
    assert not refreshed(claims, clock, [2])  # nor does it think that others deleted its file
    claims.release()


def test_claim_that_could_not_be_renewed_goes_with_its_driver(
    objects: Counted, clock: Clock
) -> None:
    claims = driver(objects, clock)
    claims.begin([1, 2], None)
    objects.broken = True
    clock.now += LEASE_S / 2
    claims.refresh([2])
    objects.broken = False
    claims.release()
    assert objects.list(FOLDER) == []


# --- beside others ------------------------------------------------------------------------


def test_waiting_driver_gets_nothing_or_everything(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    claims.begin(range(10), None)
    put(objects, claim(set(), set(range(10))))
    assert refreshed(claims, clock, [4, 5, 6, 7, 8]) == {7, 8}
    # They are free now: until they are taken there is nothing more to give.
    assert not refreshed(claims, clock, [4, 5, 6])
    put(objects, claim({7, 8}, beat=1))
    assert not refreshed(claims, clock, [4, 5, 6])
    assert claims.left == {7, 8}


def test_driver_gives_away_what_nobody_wants(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    claims.begin(range(10), None)
    put(objects, claim({77}))
    put(objects, claim(set(), {0, 50}), "third")
    assert not refreshed(claims, clock, [1, 2, 3])


def test_free_fragment_is_claimed_as_planned_beside_another(objects: Counted, clock: Clock) -> None:
    put(objects, claim({1}))
    claims = driver(objects, clock)
    assert not claims.begin([1, 2, 3], None)
    assert claims.take(None) == {2, 3}  # to be planned now, after they were claimed
    assert claims.begin([2, 3], None) == {2, 3}
    assert claims.left == {1}


def test_driver_given_up_for_dead_lets_go_of_all_that_it_has_not_begun(
    objects: Counted, clock: Clock
) -> None:
    claims = driver(objects, clock)
    claims.begin([1, 2, 3], None)
    for path in objects.list(FOLDER):
        objects.delete(path)
    assert refreshed(claims, clock, [2, 3]) == {2, 3}
    assert claims.left == {2, 3}
    assert not refreshed(claims, clock, [])
    assert claims.take(None) == {2, 3}


def test_drivers_on_an_object_store_do_not_see_each_other(tmp_path: Path, clock: Clock) -> None:
    store = RemoteObjects(LanceFileSession(str(tmp_path)))
    first, second = (Claims(store, "col", f"job{k}", clock=clock) for k in range(2))
    assert first.begin(range(4), None) == {0, 1, 2, 3}
    assert not second.begin(range(4), None)
    assert not second.take(None)
    assert "job0" in second.describe()
    assert refreshed(first, clock, [1, 2, 3]) == {3}
    assert second.take(None) == {3}
    first.release()
    assert second.begin([3], None) == {3}
    assert second.take(None) == {0, 1, 2}
    second.release()
    assert store.list(FOLDER) == []


# --- when a claim ends --------------------------------------------------------------------


def test_beat_of_another_host_is_judged_by_its_clock(objects: Counted, clock: Clock) -> None:
    claims = driver(objects, clock)
    for beat in range(5):
        put(objects, claim({1}, beat=beat))
        os.utime(objects.root / f"{FOLDER}/col/other.json", (0, 0))  # decades behind
        assert not claims.begin([1], None)
        clock.now += 0.9 * LEASE_S
    assert not claims.take(None)
    clock.now += 0.2 * LEASE_S
    assert claims.take(None) == {1}
    assert objects.calls["delete"] == 1


@given(
    st.builds(
        Claim,
        TEXT,
        st.builds(ProcessId, TEXT, TEXT, st.integers(), TEXT),
        st.floats(0, 1e6),
        st.integers(),
        st.frozensets(st.integers(0, 30)),
        st.frozensets(st.integers(0, 1 << 40), max_size=5),
    )
)
def test_claim_is_read_back_as_something_else(said: Claim) -> None:
    assert Claim.loads(said.dumps()) == said


@given(st.binary())
def test_garbage_is_read_as_a_claim(data: bytes) -> None:
    assert Claim.loads(data) is None


def test_claim_of_all_fragments_is_as_long_as_they_are_many() -> None:
    assert len(claim(set(range(10_000))).dumps()) < 300


# --- processes ----------------------------------------------------------------------------


def test_live_process_is_called_gone() -> None:
    me = this_process()
    assert not me.gone
    assert not replace(me, space="another", pid=1 << 22).gone  # nothing is known of it
    assert not replace(me, space="").gone
    assert not replace(me, started="").gone


def test_process_id_that_is_used_again_is_not_called_alive() -> None:
    assert replace(this_process(), started="long ago").gone


def test_process_that_nobody_collected_is_not_called_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = replace(this_process(), pid=child.pid, started=process._started(child.pid))
    assert not other.gone
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert other.gone
    child.communicate()
    assert other.gone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_start_is_misread_when_a_name_looks_like_fields(tmp_path: Path) -> None:
    name = tmp_path / "a) R 1 (b"
    name.symlink_to("/bin/cat")
    child = subprocess.Popen([name], stdin=subprocess.PIPE)
    try:
        assert abs(int(process._started(child.pid)) - int(this_process().started)) < 10**7
    finally:
        child.communicate()
