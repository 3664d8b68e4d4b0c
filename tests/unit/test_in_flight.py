"""What comes back of the units that are in flight: in order, whole, and no later than needed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva.appliers.units import Computed, InFlight, Unit, together
from geneva.model.types import Counts
from geneva.storage.values import size_of


def unit(row: int, input_bytes: int = 8) -> Unit:
    inputs = pa.record_batch({"x": [row]})
    return Unit(np.array([row]), inputs, input_bytes)


def computed(row: int, rows: int = 1, *, failed: bool = False) -> Computed:
    values = pa.array([None if failed else 10 * r for r in range(row, row + rows)], pa.int64())
    positions = np.array([0] if failed else [], np.int64)
    counts = Counts(computed=rows, failed=int(failed))
    at = np.arange(row, row + rows)
    return Computed(at, [values], positions, (), counts, size_of(values))


def done(row: int, **more: bool) -> Future[Computed]:
    future: Future[Computed] = Future()
    future.set_result(computed(row, **more))
    return future


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60),
    st.integers(1, 6),
    st.integers(8, 16 << 20),
)
def test_what_was_taken_in_comes_back_in_order(
    items: list[tuple[bool, bool]], threads: int, input_bytes: int
) -> None:
    flight = InFlight(threads, joins=True)
    back: list[Computed] = []
    for row, (replayed, failed) in enumerate(items):
        if replayed:
            flight.add_replayed(computed(row, failed=failed))
        else:
            flight.add(unit(row, input_bytes), done(row, failed=failed))
        back += flight.surplus()
        assert len(items[: row + 1]) - sum(len(c.rows) for c in back) <= 2 * threads + 2
    back += flight.rest()
    assert [r for c in back for r in c.rows.tolist()] == list(range(len(items)))
    values = [v for c in back for v in c.values[0].to_pylist()]
    assert values == [None if failed else 10 * r for r, (_, failed) in enumerate(items)]
    marked = [int(c.rows[k]) for c in back for k in c.failed.tolist()]
    assert marked == [r for r, (_, failed) in enumerate(items) if failed]
    assert sum(c.counts.computed for c in back) == len(items)
    assert sum(c.counts.failed for c in back) == len(marked)


def test_threads_have_work_while_the_oldest_are_written() -> None:
    begun = threading.Semaphore(0)
    may_end = [threading.Event() for _ in range(7)]

    def call(row: int) -> Computed:
        begun.release()
        may_end[row].wait(60)
        return computed(row)

    flight = InFlight(2, joins=True)
    with ThreadPoolExecutor(2) as pool:
        try:
            for row in range(7):  # more than may be in flight
                flight.add(unit(row), pool.submit(call, row))
            for event in may_end[:3]:  # as many as come back at once
                event.set()
            back = list(flight.surplus())
            assert [c.rows.tolist() for c in back] == [[0, 1, 2]]
            for _ in range(5):  # both threads have gone on, though nobody asked for the rest yet
                assert begun.acquire(timeout=60)
        finally:
            for event in may_end:
                event.set()
        back += flight.rest()
    assert [r for c in back for r in c.rows.tolist()] == list(range(7))


def test_a_failure_is_seen_while_a_later_unit_takes_its_time() -> None:
    flight = InFlight(2, joins=True)
    never: list[Future[Computed]] = [Future() for _ in range(6)]
    broken: Future[Computed] = Future()
    broken.set_exception(ValueError("row 0"))
    for row, future in enumerate([broken, *never]):
        flight.add(unit(row), future)
    began = time.monotonic()
    with pytest.raises(ValueError, match="row 0"):
        list(flight.surplus())
    assert time.monotonic() - began < 60  # `never` would take for ever


def test_large_units_are_handed_back_one_by_one_and_few_are_held() -> None:
    flight = InFlight(4, joins=True)
    for row in range(4):
        flight.add(unit(row, 30 << 20), done(row))
    back = list(flight.surplus())
    assert [c.rows.tolist() for c in back] == [[0]]  # 90 MB of inputs are left for four threads


def test_values_of_no_use_are_not_joined() -> None:
    flight = InFlight(1, joins=False)
    nothing = computed(0)
    nothing.values = []
    flight.add_replayed(nothing)
    for row in range(1, 6):
        flight.add(unit(row), done(row))
    back = [*flight.surplus(), *flight.rest()]
    assert [len(c.values) for c in back] == [0, 1, 1, 1, 1, 1]


def test_counts_of_joined_units_add_up() -> None:
    first, second = computed(0, 2), computed(2, 3)
    first.counts = Counts(computed=2, seconds_udf=0.25)
    second.counts = Counts(computed=3, seconds_udf=0.5, seconds_checkpoint=1.0)
    assert together([first, second]).counts == Counts(
        computed=5, seconds_udf=0.75, seconds_checkpoint=1.0
    )
