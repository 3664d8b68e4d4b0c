"""Rows per call, simulated: fixed cost, cost per row, noise, memory; rows that become cheaper."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva.appliers.batches import LONGEST_S, MAX_ROWS, TARGET_BYTES, BatchSizer

CALLS, SECONDS = 10, 30.0  # the later of the two: then it must be known
UNNOTICED_S = 0.005  # nobody minds how many times as long as another a call of that length takes


@dataclass(frozen=True)
class World:
    """A UDF on a machine: the mean time of a call, and how far a single one is from it."""

    call_s: float
    row_s: float
    noise: float
    limit: int
    row_bytes: int

    def mean_s(self, rows: int) -> float:
        return self.call_s + self.row_s * rows

    @property
    def most_rows(self) -> int:
        return max(1, min(self.limit, TARGET_BYTES // self.row_bytes))


def calls(sizer: BatchSizer, world: World, seed: int) -> Iterator[tuple[int, float]]:
    """Yield rows and seconds of one call after the other, without an end."""
    chance = random.Random(seed)
    while True:
        rows = sizer.rows
        seconds = world.mean_s(rows) * (1 + world.noise * chance.uniform(-1, 1))
        yield rows, seconds
        sizer.observe(rows, seconds, rows * world.row_bytes)


def best_rate(world: World) -> float:
    rows = {1, world.most_rows}
    if world.call_s < LONGEST_S:
        rows.add(max(1, min(world.most_rows, int((LONGEST_S - world.call_s) / world.row_s))))
    return max(n / world.mean_s(n) for n in rows if world.mean_s(n) <= LONGEST_S or n == 1)


logarithms = st.floats(-6, 1).map(lambda x: 10**x)
worlds = st.builds(
    World,
    call_s=st.one_of(st.just(0.0), st.floats(0.001, 5)),
    row_s=logarithms,
    noise=st.sampled_from([0.0, 0.02, 0.05, 0.1]),
    limit=st.one_of(st.just(MAX_ROWS), st.integers(1, MAX_ROWS)),
    row_bytes=st.sampled_from([8, 400, 10_000, 1 << 20, 100 << 20]),
)


@given(worlds, st.integers(0, 1 << 32))
def test_rate_is_nine_tenths_of_what_the_best_fixed_size_has(world: World, seed: int) -> None:
    sizer = BatchSizer(None, world.limit, latency=True)
    made = calls(sizer, world, seed)
    before, spent, count = 0.0, 0.0, 0
    while spent < SECONDS or count < CALLS:
        rows, seconds = next(made)
        assert rows <= world.most_rows
        assert rows == 1 or seconds <= LONGEST_S * (1 + 2 * world.noise)
        if count:
            assert seconds <= 4 * max(before, UNNOTICED_S) * 1.0001
        else:
            assert rows == 1  # the first checkpoint comes after the first call
        before, spent, count = seconds, spent + seconds, count + 1
        if count == 300:  # of calls of some milliseconds; nothing new would come
            break
    later = [next(made)[0] for _ in range(20)]
    rate = sum(later) / sum(map(world.mean_s, later))
    assert rate >= 0.9 * best_rate(world)


@given(st.floats(0.001, 10), st.integers(0, 1 << 32))
def test_batches_of_slow_rows_stay_small(row_s: float, seed: int) -> None:
    world = World(0.0, row_s, 0.02, MAX_ROWS, 8)
    made = calls(BatchSizer(None, latency=True), world, seed)
    seconds = [next(made)[1] for _ in range(60)]
    assert max(seconds) <= max(3.5, 6 * row_s)
    assert sorted(seconds)[45] <= max(0.6, 3.1 * row_s)


@functools.cache
def padded(rows: int) -> float:
    """Return how long texts are that were sorted within a call and padded to the longest of 32."""
    chance, total, times = random.Random(rows), 0, max(1, 1000 // rows)
    for _ in range(times):
        lengths = sorted(int(chance.lognormvariate(4, 0.8)) for _ in range(rows))
        total += sum(lengths[min(k + 32, rows) - 1] * min(32, rows - k) for k in range(0, rows, 32))
    return total / times


@pytest.mark.parametrize("row_s", [0.0005, 0.002, 0.004])
@pytest.mark.parametrize("seed", range(20))
def test_larger_calls_are_made_where_their_rows_are_cheaper(row_s: float, seed: int) -> None:
    def mean_s(rows: int) -> float:
        return row_s * padded(rows) / 60

    sizer, chance = BatchSizer(None, latency=True), random.Random(seed)
    spent = 0.0
    while spent < SECONDS:
        rows = sizer.rows
        seconds = mean_s(rows) * chance.uniform(0.95, 1.05)
        sizer.observe(rows, seconds, 8 * rows)
        spent += seconds
    assert rate_of(sizer.rows, mean_s) >= 0.8 * rate_of(512, mean_s)


def rate_of(rows: int, mean_s: Callable[[int], float]) -> float:
    return rows / mean_s(rows)
