"""Claims under every order of storage calls: nobody begins what another holds, all gets done."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from geneva.engine.claims import Claims

LEASE_S = 5.0


class Killed(BaseException):
    """The process of a driver dies."""


@dataclass
class World:
    """A store, a clock and the drivers, one of which acts at a time, up to its next storage call.

    Attributes
    ----------
    order
        Picks who acts next; when it is used up, they take turns.
    """

    order: list[int]
    files: dict[str, bytes] = field(default_factory=dict)
    now: float = 0.0
    done: dict[int, list[int]] = field(default_factory=dict)  # fragment -> who computed it
    computing: dict[int, int] = field(default_factory=dict)
    drivers: list[Driver] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def run(self, limit: int = 20_000) -> None:
        for step in range(limit):
            alive = [d for d in self.drivers if d.alive]
            if not alive:
                return
            pick = self.order[step] if step < len(self.order) else step
            alive[pick % len(alive)].step()
            self.now += 0.01
        raise AssertionError("they hang")


class Driver:
    """Works as the real one does: a thread that stops before each storage call until its turn."""

    def __init__(self, world: World, name: int, wanted: list[int], dies_after: int | None) -> None:
        self.world, self.name, self.wanted = world, name, wanted
        self.dies_after = dies_after
        self.claims = Claims(self, "column", f"job{name}", LEASE_S, world.clock)  # type: ignore[arg-type]
        self.claims._path = f"claims/column/{name}.json"
        self.alive = True
        self.error: BaseException | None = None
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._turn.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def _pause(self) -> None:
        self._back.release()
        self._turn.acquire()
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                raise Killed

    def _live(self) -> None:
        self._turn.acquire()
        try:
            self.work()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        mine = [f for f, who in self.world.computing.items() if who == self.name]
        for fragment in mine:
            del self.world.computing[fragment]
        self.alive = False
        self._back.release()

    def work(self) -> None:
        planned, version = self.plan(self.wanted)
        while True:
            held = self.claims.holds
            todo = sorted(self.claims.begin(planned, None))
            if not held.issuperset(todo) and version != len(self.world.done):
                planned, version = self.plan(todo)
                continue
            while todo:
                self.compute(todo.pop(0))
                if self.claims.due:
                    given = self.claims.refresh(todo)
                    todo = [f for f in todo if f not in given]
            if not self.claims.left:
                break
            while not (taken := self.claims.take(None)):
                self._pause()
            planned, version = self.plan(taken)
        self.claims.release()

    def plan(self, fragments: Iterable[int]) -> tuple[list[int], int]:
        self._pause()
        done = self.world.done
        return [f for f in sorted(fragments) if f not in done], len(done)

    def compute(self, fragment: int) -> None:
        assert fragment not in self.world.computing, "two drivers compute one fragment at once"
        self.world.computing[fragment] = self.name
        self._pause()
        del self.world.computing[fragment]
        self.world.done.setdefault(fragment, []).append(self.name)
        self.claims.settle([fragment])

    # --- storage: each call is one step --------------------------------------------------

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._pause()
        self.world.files[path] = data

    def get(self, path: str) -> bytes:
        self._pause()
        if path not in self.world.files:
            raise FileNotFoundError(path)
        return self.world.files[path]

    def list(self, folder: str) -> list[str]:
        self._pause()
        return sorted(self.world.files)

    def delete(self, path: str) -> None:
        self._pause()
        self.world.files.pop(path, None)


ORDER = st.lists(st.integers(0, 11), max_size=300)
WANTED = st.lists(st.integers(0, 11), unique=True, max_size=12).map(sorted)


def simulate(order: list[int], jobs: list[tuple[list[int], int | None]]) -> World:
    world = World(order)
    world.drivers = [Driver(world, k, *job) for k, job in enumerate(jobs)]
    world.run()
    return world


@given(order=ORDER, wanted=st.lists(WANTED, min_size=1, max_size=4))
def test_two_drivers_that_live_compute_a_fragment_twice(
    order: list[int], wanted: list[list[int]]
) -> None:
    world = simulate(order, [(w, None) for w in wanted])
    assert set(world.done) == set().union(*wanted)
    assert all(len(who) == 1 for who in world.done.values()), world.done
    assert not world.files


@given(
    order=ORDER,
    wanted=st.lists(st.tuples(WANTED, st.none() | st.integers(0, 40)), min_size=2, max_size=4),
)
def test_death_of_a_driver_leaves_fragments_that_nobody_takes(
    order: list[int], wanted: list[tuple[list[int], int | None]]
) -> None:
    world = simulate(order, wanted)
    survivors = [w for w, dies_after in wanted if dies_after is None]
    assert set().union(*survivors) <= set(world.done)
    assert all(len(who) == 1 for who in world.done.values()), world.done
