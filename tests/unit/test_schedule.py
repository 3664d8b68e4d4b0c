"""The schedule of a job: pure decisions, each way that a task can end."""

from __future__ import annotations

import itertools
from dataclasses import replace

from geneva.engine.schedule import MAX_DEATHS, MAX_DEATHS_ISOLATING, MAX_LOSSES, Schedule
from geneva.model.rows import RowMap
from geneva.model.types import (
    ColumnFile,
    Counts,
    Task,
    TaskDone,
    TaskLost,
    TaskReturned,
    TaskStopped,
)
from tests.support.tasks import CLASS, whole_task


def spans(fragment: int, count: int, rows: int = 10) -> tuple[Task, ...]:
    whole = whole_task(fragment, rows)
    edges = [rows * k // count for k in range(count + 1)]
    return tuple(
        replace(whole, start=a, stop=b, assemble=False) for a, b in itertools.pairwise(edges)
    )


def done(t: Task, *, hit: bool = True, logs: tuple[str, ...] = (), replayed: int = 0) -> TaskDone:
    rows = t.stop - t.start
    file = ColumnFile(
        t.fragment_id, t.rows, f"f{t.fragment_id}", RowMap.uniform(t.rows, CLASS).dumps(), (), None
    )
    counts = Counts(computed=rows if hit else 0, replayed=replayed)
    return TaskDone(
        t.key,
        t.fragment_id,
        t.start,
        t.stop,
        file if hit and t.assemble else None,
        counts,
        (),
        logs,
        window=t.window,
    )


def take(schedule: Schedule) -> Task:
    t = schedule.next_task()
    assert t is not None
    return t


def test_num_frags_hands_out_no_more_than_it_allows() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(5)], 2, 1)
    first, second = take(schedule), take(schedule)
    assert schedule.next_task() is None
    schedule.done(done(first))
    schedule.done(done(second))
    assert schedule.next_task() is None
    assert schedule.idle
    assert len(schedule.not_begun) == 3


def test_fragment_in_which_the_filter_finds_nothing_does_not_use_up_num_frags() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(4)], 1, 1)
    schedule.done(done(take(schedule), hit=False))
    schedule.done(done(take(schedule), hit=False))
    schedule.done(done(take(schedule)))
    assert schedule.next_task() is None
    assert schedule.nothing_to_do == [0, 1]
    assert [f.fragment_id for f in schedule.take_finished()] == [2]


def test_span_is_never_counted_as_a_finished_fragment() -> None:
    schedule = Schedule([spans(0, 3)], None, 1)
    pieces = [take(schedule) for _ in range(3)]
    for k, piece in enumerate(pieces):
        assert not piece.assemble
        schedule.done(done(piece, logs=(f"l{k}",)))
    assert schedule.fragments_done == 0
    assert not schedule.take_finished()
    whole = take(schedule)
    assert whole.assemble
    assert whole.whole
    assert whole.resume == ("l0", "l1", "l2")
    schedule.done(done(whole, replayed=10))
    assert schedule.fragments_done == 1
    assert schedule.idle
    assert schedule.counts.computed == 10
    assert schedule.counts.replayed == 0  # the assembling replay is no replay of an earlier run


def test_rows_replayed_from_an_earlier_run_are_counted_once_through_spans() -> None:
    schedule = Schedule([spans(0, 2)], None, 1)
    first, second = take(schedule), take(schedule)
    schedule.done(done(first, replayed=3))
    schedule.done(done(second))
    schedule.done(done(take(schedule), replayed=10))
    assert schedule.counts.computed == 10
    assert schedule.counts.replayed == 3


def test_death_of_a_worker_gives_its_task_to_another_with_the_logs_by_then() -> None:
    schedule = Schedule([(whole_task(0),), (whole_task(1),)], None, 1)
    first = take(schedule)
    assert not schedule.lost(TaskLost(first, "died", started=True), ("l",), isolate=False)
    again = take(schedule)
    assert (again.fragment_id, again.resume, again.attempt) == (0, ("l",), 1)


def test_task_that_kills_worker_after_worker_is_given_up() -> None:
    for isolate, allowed in ((False, MAX_DEATHS), (True, MAX_DEATHS_ISOLATING)):
        schedule = Schedule([(whole_task(0),)], None, 1)
        verdicts = [
            schedule.lost(TaskLost(take(schedule), "died", started=True), (), isolate=isolate)
            for _ in range(allowed)
        ]
        assert not any(verdicts)
        assert schedule.lost(TaskLost(take(schedule), "died", started=True), (), isolate=isolate)


def test_task_that_waited_behind_the_deadly_one_is_not_blamed() -> None:
    schedule = Schedule([(whole_task(0),)], None, 1)
    for _ in range(5 * MAX_DEATHS):
        lost = TaskLost(take(schedule), "died", started=False)
        assert not schedule.lost(lost, (), isolate=False)
    assert take(schedule).attempt == 0


def test_task_whose_nodes_go_away_without_end_is_given_up() -> None:
    schedule = Schedule([(whole_task(0),)], None, 1)
    verdicts = [
        schedule.lost(TaskLost(take(schedule), "gone", started=False), (), isolate=False)
        for _ in range(MAX_LOSSES + 1)
    ]
    assert verdicts == [False] * MAX_LOSSES + [True]


def test_deaths_are_counted_for_each_span_alone() -> None:
    schedule = Schedule([spans(0, 2)], None, 1)
    for _ in range(MAX_DEATHS):
        assert not schedule.lost(TaskLost(take(schedule), "d", started=True), (), isolate=False)
    schedule.done(done(take(schedule)))
    assert not schedule.lost(TaskLost(take(schedule), "d", started=True), (), isolate=False)


def test_dropped_fragment_is_not_handed_out_again() -> None:
    schedule = Schedule([spans(0, 3), (whole_task(1),)], None, 1)
    running, other = take(schedule), take(schedule)
    schedule.dropped(running)
    assert take(schedule).fragment_id == 1
    schedule.done(done(other))  # a span that was under way ends after all
    schedule.done(done(whole_task(1)))
    assert schedule.idle
    assert [f.fragment_id for f in schedule.take_finished()] == [1]


def test_fragment_that_was_given_up_is_neither_begun_nor_waited_for() -> None:
    schedule = Schedule([(whole_task(0),), spans(1, 2), (whole_task(2),), (whole_task(3),)], 2, 1)
    first = take(schedule)
    assert schedule.not_begun == [1, 2, 3]
    schedule.give_up({1, 2})
    assert take(schedule).fragment_id == 3
    schedule.done(done(first))
    schedule.done(done(whole_task(3)))
    assert schedule.idle


def test_dropped_fragment_makes_room_under_num_frags() -> None:
    schedule = Schedule([(whole_task(0),), (whole_task(1),)], 1, 1)
    first = take(schedule)
    assert schedule.next_task() is None
    schedule.dropped(first)
    assert take(schedule).fragment_id == 1


def test_stopped_task_no_longer_runs() -> None:
    schedule = Schedule([(whole_task(0),)], None, 1)
    first = take(schedule)
    assert schedule.running == 1
    schedule.stopped(TaskStopped(first))
    assert schedule.running == 0


def test_commit_is_due_at_the_granularity_and_not_before() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(3)], None, 2)
    schedule.done(done(take(schedule)))
    assert not schedule.commit_due(100.0)
    schedule.done(done(take(schedule)))
    assert schedule.commit_due(100.0)
    assert len(schedule.take_finished()) == 2
    assert schedule.take_finished() == []
    assert not schedule.commit_due(100.0)


def test_slow_commits_are_spaced_so_that_they_do_not_fill_the_time() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(2)], None, 1)
    schedule.done(done(take(schedule)))
    schedule.committed(ended_s=100.0, took_s=5.0)
    assert not schedule.commit_due(101.0)
    assert schedule.commit_due(200.0)


# --- groups -------------------------------------------------------------------------------


def quick(schedule: Schedule, count: int) -> None:
    """Take in so many fragments that took no time."""
    for _ in range(count):
        schedule.done(done(take(schedule)))


def test_small_fragments_are_handed_out_together_once_they_are_known_to_be_quick() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(50)], None, 64, group_rows=1000)
    assert len(schedule.next_group(2)) == 1
    quick(schedule, 1)
    assert [t.fragment_id for t in schedule.next_group(2)] == list(range(2, 26))  # half of 48


def test_group_ends_where_rows_granularity_or_num_frags_end() -> None:
    for limit, granularity, rows, size in ((None, 64, 35, 3), (None, 4, 1000, 3), (6, 64, 1000, 5)):
        schedule = Schedule(
            [(whole_task(k),) for k in range(50)], limit, granularity, group_rows=rows
        )
        quick(schedule, 1)
        assert len(schedule.next_group(1)) == size


def test_slow_fragments_and_those_with_checkpoints_go_alone() -> None:
    pieces = [(whole_task(0),), *((replace(whole_task(k), resume=("log",)),) for k in range(1, 50))]
    schedule = Schedule(pieces, None, 64, group_rows=1000)
    quick(schedule, 1)
    assert len(schedule.next_group(1)) == 1
    schedule = Schedule([(whole_task(k),) for k in range(50)], None, 64, group_rows=1000)
    schedule.done(replace(done(take(schedule)), counts=Counts(computed=10, seconds_udf=5.0)))
    assert len(schedule.next_group(1)) == 1


def test_returned_task_comes_next() -> None:
    schedule = Schedule([(whole_task(k),) for k in range(20)], None, 64, group_rows=1000)
    quick(schedule, 1)
    group = schedule.next_group(1)
    schedule.done(done(group[0]))
    for t in reversed(group[1:]):
        schedule.returned(TaskReturned(t))
    assert schedule.running == 0
    assert take(schedule) == group[1]
