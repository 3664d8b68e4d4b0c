"""The schedule under random events: every fragment once, whatever order things happen in."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geneva.engine.schedule import MAX_DEATHS, Schedule
from geneva.model.rows import RowMap
from geneva.model.types import ColumnFile, Counts, Task, TaskDone, TaskLost
from tests.support.tasks import CLASS, whole_task

ROWS = 24


def _pieces(fragment: int, count: int) -> tuple[Task, ...]:
    whole = whole_task(fragment, ROWS)
    edges = [ROWS * k // count for k in range(count + 1)]
    if count == 1:
        return (whole,)
    return tuple(
        replace(whole, start=a, stop=b, assemble=False) for a, b in itertools.pairwise(edges)
    )


class ScheduleMachine(RuleBasedStateMachine):
    """Plays the executor and the workers; keeps its own books of what was handed out."""

    @initialize(
        counts=st.lists(st.integers(1, 4), max_size=7),
        limit=st.one_of(st.none(), st.integers(1, 5)),
        granularity=st.integers(1, 4),
        empty=st.sets(st.integers(0, 6)),
    )
    def begin(
        self, counts: list[int], limit: int | None, granularity: int, empty: set[int]
    ) -> None:
        self.counts, self.limit, self.granularity, self.empty = counts, limit, granularity, empty
        self.schedule = Schedule([_pieces(i, n) for i, n in enumerate(counts)], limit, granularity)
        self.running: list[Task] = []
        self.spans_done: Counter[int] = Counter()
        self.logs: dict[int, set[str]] = {}
        self.finished: list[int] = []
        self.nothing: list[int] = []
        self.waiting = 0
        self.dropped: set[int] = set()
        self.given_up = False
        self.deaths: Counter[tuple[int, int, int]] = Counter()
        self.log_count = 0

    @rule()
    def hand_out(self) -> None:
        if self.given_up:
            return
        task = self.schedule.next_task()
        if task is None:
            return
        fragment = task.fragment_id
        assert fragment not in self.dropped
        assert fragment not in self.finished + self.nothing
        ident = (fragment, task.start, task.stop, task.assemble)
        assert ident not in [(t.fragment_id, t.start, t.stop, t.assemble) for t in self.running]
        if task.assemble and self.counts[fragment] > 1:
            assert self.spans_done[fragment] == self.counts[fragment]
            assert self.logs.get(fragment, set()) <= set(task.resume)
        self.running.append(task)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        task = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        hit = task.fragment_id not in self.empty
        self.log_count += 1
        logs = (f"log{self.log_count}",) if hit else ()
        rows = task.stop - task.start if hit else 0
        file = None
        if task.assemble and hit:
            name = f"f{task.fragment_id}"
            row_map = RowMap.uniform(ROWS, CLASS).dumps()
            file = ColumnFile(task.fragment_id, ROWS, name, row_map, (), None)
        event = TaskDone(
            task.key,
            task.fragment_id,
            task.start,
            task.stop,
            file,
            Counts(computed=rows),
            (),
            logs,
            window=task.window,
        )
        self.schedule.done(event)
        if task.fragment_id in self.dropped:
            return
        if not task.assemble:
            self.spans_done[task.fragment_id] += 1
            self.logs.setdefault(task.fragment_id, set()).update(logs)
        elif hit:
            self.finished.append(task.fragment_id)
            self.waiting += 1
        else:
            self.nothing.append(task.fragment_id)

    @precondition(lambda self: self.running and not self.dropped)
    @rule(data=st.data(), started=st.booleans())
    def worker_dies(self, data: st.DataObject, started: bool) -> None:
        task = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        ident = (task.fragment_id, task.start, task.stop)
        self.deaths[ident] += started
        logs = tuple(sorted(self.logs.get(task.fragment_id, set())))
        too_many = self.schedule.lost(TaskLost(task, "died", started), logs, isolate=False)
        assert too_many == (self.deaths[ident] > MAX_DEATHS)
        self.given_up = self.given_up or too_many

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        task = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.schedule.dropped(task)
        self.dropped.add(task.fragment_id)

    @precondition(lambda self: self.schedule.not_begun)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Another driver takes fragments that were not begun."""
        given = data.draw(st.sets(st.sampled_from(self.schedule.not_begun)))
        self.schedule.give_up(given)
        self.dropped |= given

    @rule()
    def commit(self) -> None:
        due = self.schedule.commit_due(1e9)
        assert due == (self.waiting >= self.granularity)
        if due:
            files = self.schedule.take_finished()
            assert len(files) == self.waiting
            self.waiting = 0

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "schedule"):
            return
        assert self.schedule.running == len(self.running)
        assert self.schedule.hits == len(self.finished)
        assert len(set(self.finished)) == len(self.finished)
        assert self.schedule.fragments_done == len(self.finished) + len(self.nothing)
        assert self.schedule.nothing_to_do == self.nothing
        assert self.schedule.counts.computed == ROWS * len(self.finished)
        if self.limit is not None:
            assert len(self.finished) <= self.limit

    def teardown(self) -> None:
        if not hasattr(self, "schedule") or self.given_up:
            return
        while not self.schedule.idle:
            self.hand_out()
            while self.running:
                self.finish(_First())
                self.books_agree()
        wanted = set(range(len(self.counts))) - self.dropped - self.empty
        if self.limit is None or len(wanted) <= self.limit:
            assert set(self.finished) == wanted
            assert len(self.schedule.not_begun) == 0 or len(self.finished) == self.limit
        else:
            assert len(self.finished) == self.limit
        accounted = len(self.finished) + len(self.nothing) + len(self.dropped)
        assert accounted + len(self.schedule.not_begun) == len(self.counts)


class _First:
    """Draws 0: the end of a run is played in order."""

    def draw(self, _: object) -> int:
        return 0


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
