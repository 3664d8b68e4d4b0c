"""Windows in the schedule: in order, at most so many at once, every fragment written once."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from geneva.engine.schedule import Cut, Schedule, Windowed
from geneva.model.rows import RowMap, RowSet
from geneva.model.types import ColumnFile, Counts, Task, TaskDone, TaskLost
from tests.support.tasks import CLASS, whole_task

ROWS = 12


def rows_of(task: Task) -> int:
    if task.need is None:
        return task.stop - task.start
    return int(task.need.mask()[task.start : task.stop].sum())


class Job:
    """The places of all rows, and how their tasks are handed to a schedule."""

    def __init__(self, places: list[list[int]], windows: int, at_once: int, pieces: int) -> None:
        self.places, self.windows, self.pieces = places, windows, pieces
        self.shared = {f for f, p in enumerate(places) if len(set(p)) > 1}
        cuts = {f: Cut(whole_task(f, ROWS), len(set(places[f]))) for f in self.shared}
        of_windows = Windowed(range(windows), self.tasks, at_once, cuts)
        self.schedule = Schedule((), None, 2, windows=of_windows)

    def tasks(self, window: int, row_s: float | None) -> list[tuple[Task, ...]]:
        made: list[tuple[Task, ...]] = []
        for fragment, places in enumerate(self.places):
            mask = np.array(places) == window
            if not mask.any():
                continue
            task = replace(whole_task(fragment, ROWS), window=window)
            if fragment in self.shared:
                task = replace(task, need=RowSet.from_mask(mask), assemble=False)
            count = min(self.pieces, int(mask.sum()))
            if count > 1:
                at = np.flatnonzero(mask)
                edges = [0, *(int(at[len(at) * k // count]) for k in range(1, count)), ROWS]
                made.append(
                    tuple(
                        replace(task, start=a, stop=b, assemble=False)
                        for a, b in itertools.pairwise(edges)
                    )
                )
            else:
                made.append((task,))
        return made


jobs = st.builds(
    Job,
    places=st.lists(
        st.one_of(
            st.integers(0, 3).map(lambda w: [w] * ROWS),
            st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
        ),
        max_size=5,
    ),
    windows=st.just(4),
    at_once=st.integers(1, 3),
    pieces=st.integers(1, 3),
)


def done(task: Task) -> TaskDone:
    assembles = task.assemble
    row_map = RowMap.uniform(ROWS, CLASS).dumps()
    file = ColumnFile(task.fragment_id, ROWS, f"f{task.fragment_id}", row_map, (), None)
    replayed = task.checkpointed or 0
    return TaskDone(
        task.key,
        task.fragment_id,
        task.start,
        task.stop,
        file if assembles else None,
        Counts(computed=replayed or rows_of(task), replayed=replayed),
        (),
        (f"log of {task.fragment_id} {task.start} {task.window}",),
        window=task.window,
    )


@settings(max_examples=300, deadline=None)
@given(job=jobs, seed=st.integers(0, 2**32))
def test_windows_open_in_order_and_every_row_is_computed_once(job: Job, seed: int):
    chance, schedule, at_once = random.Random(seed), job.schedule, job.schedule._at_once
    running: list[Task] = []
    written: Counter[int] = Counter()
    computed: dict[int, set[int]] = defaultdict(set)
    while not schedule.idle:
        task = schedule.next_task() if chance.random() < 0.6 or not running else None
        ended = [e.number for e in schedule.windows_ended]
        if task is not None:
            running.append(task)
            if task.window >= 0:
                assert task.window not in ended
                open_now = {t.window for t in running if t.window >= 0}
                assert len(open_now) <= at_once
                begun = range(task.window)
                assert sum(w not in ended for w in begun) < at_once
            continue
        if not running:
            continue
        task = running.pop(chance.randrange(len(running)))
        if chance.random() < 0.1:
            assert not schedule.lost(TaskLost(task, "gone", started=False), (), isolate=False)
            continue
        if task.checkpointed is None:
            mask = np.ones(ROWS, np.bool_) if task.need is None else task.need.mask()
            rows = {r for r in np.flatnonzero(mask).tolist() if task.start <= r < task.stop}
            assert not rows & computed[task.fragment_id]
            computed[task.fragment_id] |= rows
        else:
            assert task.checkpointed == ROWS
        written[task.fragment_id] += task.assemble
        schedule.done(done(task))
    assert sorted(e.number for e in schedule.windows_ended) == list(range(job.windows))
    assert all(computed[f] == set(range(ROWS)) for f in range(len(job.places)))
    assert written == Counter(range(len(job.places)))
    assert schedule.counts.computed == ROWS * len(job.places)


@settings(max_examples=300, deadline=None)
@given(job=jobs, seed=st.integers(0, 2**32), bad=st.integers(0, 3))
def test_window_that_fails_takes_no_other_window_with_it(job: Job, seed: int, bad: int):
    chance, schedule = random.Random(seed), job.schedule
    running: list[Task] = []
    computed: dict[int, set[int]] = defaultdict(set)
    assembled: Counter[int] = Counter()
    while not schedule.idle:
        task = schedule.next_task() if chance.random() < 0.6 or not running else None
        if task is not None:
            running.append(task)
            continue
        if not running:
            continue
        task = running.pop(chance.randrange(len(running)))
        if task.window == bad and chance.random() < 0.7:
            schedule.window_failed(task)
            continue
        if task.window >= 0:
            mask = np.ones(ROWS, np.bool_) if task.need is None else task.need.mask()
            computed[task.fragment_id] |= {
                r for r in np.flatnonzero(mask).tolist() if task.start <= r < task.stop
            }
        assembled[task.fragment_id] += task.assemble
        schedule.done(done(task))
    failed = {e.number for e in schedule.windows_ended if e.failed}
    assert failed <= {bad}
    assert sorted(e.number for e in schedule.windows_ended) == list(range(job.windows))
    for fragment, places in enumerate(job.places):
        kept = {r for r, w in enumerate(places) if w not in failed}
        assert kept <= computed[fragment]
        assert assembled[fragment] <= 1
        assert assembled[fragment] == 1 or set(places) <= failed
