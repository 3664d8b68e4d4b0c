"""The store: what was accepted is there, what ended does not change, only the owner reports."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from geneva.engine.control import Control, Wanted
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.process import ProcessId, this_process
from geneva.errors import (
    JobStateError,
    LeaseLostError,
    NoSuchJobError,
    ServiceError,
    SettingError,
)
from geneva.jobs import backfills
from geneva.jobs.page import Wish
from geneva.jobs.records import RunRecord, Submission, TaskState
from geneva.jobs.store.database import Database
from geneva.jobs.store.leases import CRASHES, Leases
from geneva.jobs.store.models import Base
from geneva.jobs.store.news import News, report
from geneva.jobs.store.opening import check, upgrade
from geneva.jobs.store.queue import QueueClaim, claim, outlook
from geneva.jobs.store.store import Store
from geneva.jobs.store.store_recorder import StoreRecorder
from geneva.model.types import Counts, Failure, JobState, Progress, TaskDone

ASKED = Submission(db="db", table="t", columns=("y",), arguments={"where": "x > 1"})
DEAD = ProcessId("elsewhere", "another-boot", 1, "then")


def submit(jobs: Store, asked: Submission = ASKED, column: str = "y", **more: object) -> RunRecord:
    return jobs.submit(replace(asked, **more), "db/t.lance", [column])


def running(jobs: Store) -> tuple[RunRecord, QueueClaim]:
    """Submit a job and let a driver have it."""
    run = submit(jobs)
    [claimed] = claim(jobs.database, this_process())
    Leases(jobs.database).attach(claimed, this_process(), 30)
    return run, claimed


def progress(state: JobState = JobState.RUNNING, **counts: int) -> Progress:
    return Progress("", ("y",), state, **counts)


def expire(jobs: Store, job_id: str) -> None:
    with jobs.database.write() as session:
        session.execute(
            text("UPDATE jobs SET lease_until_s = 1 WHERE id = :id").bindparams(id=job_id)
        )


def test_migrations_and_models_that_differ(jobs: Store):
    with jobs.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_database_that_was_not_upgraded_is_refused(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(ServiceError, match="geneva db upgrade"):
        check(database)
    upgrade(database)
    upgrade(database)
    check(database)


def test_sqlite_keeps_what_it_said_it_has(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'deeper' / 'jobs.db'}")
    upgrade(database)
    with database.read() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA synchronous")).scalar() == 2
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()
    with sqlite3.connect(tmp_path / "deeper" / "jobs.db") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("url", ["jobs.db", "sqlite://", "mysql://host/name", "sqlite:///:memory:"])
def test_url_of_no_database_of_jobs(url: str):
    with pytest.raises(SettingError, match="sqlite:///"):
        Database(url)


def test_request_that_is_sent_twice_is_one_run(jobs: Store):
    first = jobs.submit(ASKED, "db/t.lance", ["y"], key="k")
    assert jobs.submit(ASKED, "db/t.lance", ["y"], key="k").id == first.id
    with pytest.raises(JobStateError, match="another request"):
        jobs.submit(replace(ASKED, priority=1), "db/t.lance", ["y"], key="k")
    assert [r.id for r in jobs.runs(Wish()).items] == [first.id]


def test_record_that_forgets_what_was_asked(jobs: Store):
    run = submit(jobs, name="nightly", priority=3, arguments={"params": {"k": 1}})
    [job] = jobs.run(run.id).jobs
    assert (job.state, job.wanted, job.epoch) == (JobState.QUEUED, Wanted.RUN, 0)
    assert (job.table, job.columns, job.priority) == ("t", ("y",), 3)
    assert (job.params, job.arguments) == ({"k": 1}, {"params": {"k": 1}})
    assert jobs.run(run.id).name == "nightly"
    with pytest.raises(NoSuchJobError, match="'none'"):
        jobs.run("none")


def test_claimed_job_is_not_claimed_again(jobs: Store):
    run = submit(jobs)
    [claimed] = claim(jobs.database, this_process())
    assert claimed == QueueClaim(run.jobs[0].id, 1)
    assert claim(jobs.database, this_process()) == []


def test_second_job_on_a_column_waits_and_says_for_whom(jobs: Store):
    first, second, other = submit(jobs), submit(jobs), submit(jobs, column="z")
    assert [c.job_id for c in claim(jobs.database, this_process())] == [
        first.jobs[0].id,
        other.jobs[0].id,
    ]
    [job] = jobs.run(second.id).jobs
    assert job.reason == f"waiting: column 'y' is being filled by job {first.jobs[0].id}"
    assert jobs.run(second.id).reason == job.reason


def test_cap_that_is_changed_while_jobs_run(jobs: Store):
    lists = jobs
    for k in range(4):
        submit(jobs, column=f"c{k}", pool="gpu")
    lists.set_pool("gpu", 1)
    assert len(claim(jobs.database, this_process())) == 1
    lists.set_pool("gpu", 3)
    lists.set_pool("", 2)
    assert len(claim(jobs.database, this_process())) == 1
    waits = [j.reason for j in lists.jobs(Wish(states=(JobState.QUEUED,))).items]
    assert waits == ["waiting: 2 of 2 slots are taken"] * 2
    pools = {p.name: (p.slots, p.active, p.queued) for p in lists.pools()}
    assert pools == {"": (2, 2, 2), "default": (None, 0, 0), "gpu": (3, 2, 2)}


def test_outlook_changes_with_all_that_lets_a_job_start(jobs: Store):
    """A scheduler reads the queue again only when it does."""
    lists, leases = jobs, Leases(jobs.database)

    def started_and_seen() -> tuple[list[QueueClaim], object]:
        return claim(jobs.database, this_process()), outlook(jobs.database)

    lists.set_pool("gpu", 0)
    first, second, third = (submit(jobs, column=f"c{k}", pool="gpu") for k in range(3))
    started, seen = started_and_seen()
    assert started == []
    assert outlook(jobs.database) == seen

    lists.set_pool("gpu", 1)  # a cap
    assert outlook(jobs.database) != seen
    [claimed], seen = started_and_seen()
    assert claimed.job_id == first.jobs[0].id
    assert started_and_seen() == ([], seen)

    leases.attach(claimed, this_process(), 30)
    leases.finish(claimed, progress(), JobState.SUCCEEDED)  # the end of a job
    assert outlook(jobs.database) != seen
    [claimed], seen = started_and_seen()
    assert claimed.job_id == second.jobs[0].id

    [job] = jobs.run(third.id).jobs
    jobs.want(third.id, Wanted.PAUSE)
    submit(jobs, column="c4")  # one job for another
    assert outlook(jobs.database) != seen
    [claimed], seen = started_and_seen()
    assert claimed.job_id != job.id


def test_stale_driver_can_neither_report_nor_publish(jobs: Store):
    run, old = running(jobs)
    leases = Leases(jobs.database)
    expire(jobs, old.job_id)
    [held] = leases.held()
    assert held.expired
    assert leases.bury(held, "no sign of life") is JobState.QUEUED
    with jobs.database.write() as session:
        session.execute(text("UPDATE jobs SET not_before_s = 0"))
    [new] = claim(jobs.database, this_process())
    assert new == QueueClaim(old.job_id, 2)
    for stale in (
        lambda: leases.beat(old, progress(rows_computed=9), 30),
        lambda: leases.check(old),
        lambda: leases.attach(old, this_process(), 30),
        lambda: leases.finish(old, progress(), JobState.SUCCEEDED),
        lambda: leases.give_back(old, progress(), "why"),
    ):
        with pytest.raises(LeaseLostError, match="epoch 1"):
            stale()
    expire(jobs, old.job_id)
    assert leases.bury(held, "buried before") is None
    leases.stop(old, progress())
    report(jobs.database, old, News(events=[("late", "", {})]))
    leases.check(new)
    assert jobs.run(run.id).jobs[0].rows_computed == 0
    kinds = [e.kind for e in jobs.events(run.id).items]
    assert "late" not in kinds
    assert kinds.count("driver_died") == 1


def test_driver_that_was_heard_of_meanwhile_is_not_buried(jobs: Store):
    _, claimed = running(jobs)
    leases = Leases(jobs.database)
    expire(jobs, claimed.job_id)
    [held] = leases.held()
    leases.beat(claimed, progress(), 30)
    assert leases.bury(held, "no sign of life") is None
    leases.check(claimed)


def test_job_whose_drivers_die_without_progress_fails_at_last(jobs: Store):
    run = submit(jobs)
    leases = Leases(jobs.database)
    for deaths in range(1, CRASHES + 1):
        with jobs.database.write() as session:
            session.execute(text("UPDATE jobs SET not_before_s = 0"))
        [claimed] = claim(jobs.database, this_process())
        leases.attach(claimed, DEAD, 30)
        [held] = leases.held()
        state = leases.bury(held, "it is gone")
        assert state is (JobState.QUEUED if deaths < CRASHES else JobState.FAILED)
    [job] = jobs.run(run.id).jobs
    assert job.error == "it is gone"
    assert "5 drivers ended one after the other" in job.reason


def test_progress_between_deaths_forgives_them(jobs: Store):
    submit(jobs)
    leases = Leases(jobs.database)
    for _ in range(2 * CRASHES):
        with jobs.database.write() as session:
            session.execute(text("UPDATE jobs SET not_before_s = 0"))
        [claimed] = claim(jobs.database, this_process())
        leases.attach(claimed, this_process(), 30)
        leases.beat(claimed, progress(rows_computed=5, rows_replayed=4), 30)
        [held] = leases.held()
        assert leases.bury(held, "it is gone") is JobState.QUEUED


@pytest.mark.parametrize(
    ("wanted", "state"), [(Wanted.PAUSE, JobState.PAUSED), (Wanted.CANCEL, JobState.CANCELLED)]
)
def test_wish_is_fulfilled_only_when_the_process_is_gone(
    jobs: Store, wanted: Wanted, state: JobState
):
    run, claimed = running(jobs)
    leases = Leases(jobs.database)
    leases.beat(claimed, progress(), 30)
    assert jobs.want(run.id, wanted).state is JobState.RUNNING
    assert leases.beat(claimed, progress(), 30) is wanted
    leases.stop(claimed, progress())
    assert jobs.run(run.id).state is JobState.RUNNING
    [held] = leases.held()
    assert leases.bury(held, "exited") is state


def test_cancelled_job_cannot_be_resumed_and_what_ended_never_changes(jobs: Store):
    run, claimed = running(jobs)
    jobs.want(run.id, Wanted.CANCEL)
    with pytest.raises(JobStateError, match="being cancelled"):
        jobs.want(run.id, Wanted.RUN)
    [held] = Leases(jobs.database).held()
    Leases(jobs.database).bury(held, "exited")
    assert jobs.want(run.id, Wanted.CANCEL).state is JobState.CANCELLED
    for wanted in (Wanted.RUN, Wanted.PAUSE):
        with pytest.raises(JobStateError, match="does not change"):
            jobs.want(run.id, wanted)
    assert claimed.epoch == 1


def test_queued_job_is_paused_resumed_and_cancelled_at_once(jobs: Store):
    run = submit(jobs)
    assert jobs.want(run.id, Wanted.PAUSE).state is JobState.PAUSED
    assert claim(jobs.database, this_process()) == []
    assert jobs.want(run.id, Wanted.RUN).state is JobState.QUEUED
    assert jobs.want(run.id, Wanted.CANCEL).state is JobState.CANCELLED
    assert claim(jobs.database, this_process()) == []


def test_retry_is_a_child_limited_to_what_failed(jobs: Store):
    run, claimed = running(jobs)
    with pytest.raises(JobStateError, match="only what ended"):
        jobs.retry(run.id)
    counts = progress(rows_computed=10, rows_failed=2)
    Leases(jobs.database).finish(claimed, counts, JobState.PARTIAL)
    assert jobs.run(run.id).state is JobState.PARTIAL
    again = jobs.retry(run.id)
    assert (again.id, again.state) == (run.id, JobState.QUEUED)
    [child] = again.jobs
    assert child.parent_id == claimed.job_id
    assert child.arguments == {"where": "x > 1", "retry_failed": True, "force": False}
    assert [j.state for j in jobs.run(run.id).jobs] == [JobState.PARTIAL, JobState.QUEUED]
    [claimed] = claim(jobs.database, this_process())
    Leases(jobs.database).finish(claimed, progress(), JobState.SUCCEEDED)
    assert jobs.run(run.id).state is JobState.SUCCEEDED
    with pytest.raises(JobStateError, match="nothing to retry"):
        jobs.retry(run.id)


def test_plan_that_is_reported_after_its_commit_counts_no_row_twice(jobs: Store):
    run, claimed = running(jobs)
    fresh = StoreRecorder(jobs, claimed, scheduled=True)._fresh(
        FragmentPlan(0, 9, Action.COMPUTE, "missing", 9), TaskState.COMMITTED
    )
    earlier = fresh | {"column": "y", "fragment_id": 1, "rows_computed": 5}
    report(jobs.database, claimed, News(tasks=[earlier]))  # by the driver before
    mine = fresh | {"column": "y", "rows_computed": 9}
    keys = frozenset({("y", 0)})
    report(jobs.database, claimed, News(tasks=[mine], first_plan=True, mine=keys))
    Leases(jobs.database).finish(claimed, progress(rows_computed=9), JobState.SUCCEEDED)
    assert jobs.run(run.id).jobs[0].rows_computed == 14


def test_rows_of_a_job_that_ends_before_its_first_report_count_once(jobs: Store):
    run, claimed = running(jobs)
    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    task = SimpleNamespace(key="k", fragment_id=0)
    for column in ("y", "z"):
        plan = SimpleNamespace(
            fragment_id=0, rows=10, rows_compute=10, exact=True, task=task, reason=""
        )
        recorder.planned((column,), 1, [plan])
        file = SimpleNamespace()
        recorder.took(TaskDone("k", 0, 0, 10, file, Counts(computed=10)))
        recorder.published(2, [0], 0.1)
    recorder.close()
    Leases(jobs.database).finish(claimed, progress(rows_computed=10), JobState.SUCCEEDED)
    assert jobs.run(run.id).jobs[0].rows_computed == 20
    seconds = [t.seconds_commit for t in jobs.tasks(claimed.job_id).items]
    assert seconds == [0.1, 0.1]


def test_failed_rows_are_in_the_record_while_their_fragment_is_computed(jobs: Store):
    _, claimed = running(jobs)
    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    task = SimpleNamespace(key="k", fragment_id=0)
    facts = {"rows": 10, "rows_compute": 10, "exact": True, "reason": ""}
    plans = [SimpleNamespace(fragment_id=i, task=task, **facts) for i in (0, 1)]
    recorder.planned(("y",), 1, plans)

    def failed() -> tuple[list[int], int, int]:
        recorder._flush()
        found = jobs
        [stage] = found.stages(claimed.job_id)
        tasks = [t.rows_failed for t in found.tasks(claimed.job_id).items]
        return tasks, stage.rows_failed, stage.fragments_with_failures

    assert failed() == ([0, 0], 0, 0)
    recorder.took(TaskDone("k", 0, 0, 4, None, Counts(computed=4, failed=1)))
    recorder.took(TaskDone("k", 0, 4, 8, None, Counts(computed=4, failed=2)))
    assert failed() == ([3, 0], 3, 1)
    file = SimpleNamespace()
    recorder.took(TaskDone("k", 0, 0, 10, file, Counts(computed=10, replayed=8, failed=3)))
    recorder.took(TaskDone("k", 1, 0, 10, file, Counts(computed=10, failed=1)))
    assert failed() == ([3, 1], 4, 2)


def test_plan_of_a_filter_says_at_most_and_is_known_when_it_was_evaluated(jobs: Store):
    run, claimed = running(jobs)
    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    task = SimpleNamespace(key="k", fragment_id=0)
    plan = FragmentPlan(0, 10, Action.FILTER, "missing", 10, task=task)  # type: ignore[arg-type]
    recorder.planned(("y",), 1, [plan])
    recorder.took(TaskDone("k", 0, 0, 10, SimpleNamespace(), Counts(computed=3)))
    recorder.close()
    [event] = [e for e in jobs.events(run.id).items if e.kind == "planned"]
    assert event.message == "at most 10 rows in at most 1 of 1 fragments"
    assert event.data["exact"] is False
    [found] = jobs.tasks(claimed.job_id).items
    assert (found.rows_planned, found.rows_computed) == (3, 3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action.COMPUTE, "30 rows in 2 of 3 fragments"),
        (Action.FILTER, "at most 50 rows in at most 2 of 3 fragments"),
    ],
)
def test_plan_of_a_limited_call_counts_what_that_call_fills(
    jobs: Store, action: Action, message: str
):
    run, claimed = running(jobs)
    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    task = SimpleNamespace(key="k", fragment_id=0)
    plans = [
        FragmentPlan(i, rows, action, "missing", rows, task=task)  # type: ignore[arg-type]
        for i, rows in enumerate((10, 20, 30))
    ]
    recorder.planned(("y",), 1, plans, 2)
    recorder.close()
    [event] = [e for e in jobs.events(run.id).items if e.kind == "planned"]
    assert event.message == message


def test_rate_and_estimate_are_the_same_at_every_door(jobs: Store):
    leases = Leases(jobs.database)
    run, claimed = running(jobs)
    told = progress(rows_total=100, rows_computed=20, rows_replayed=10, fragments_total=4)
    told = replace(told, seconds=60.0, rate=40.0, total_estimated=True)
    leases.beat(claimed, told, 30)
    kept = jobs.run(run.id)
    [job] = kept.jobs
    assert (job.rows_per_s, job.eta_s, job.total_estimated) == (40, 2, True)
    shown = backfills._progress(job, kept)
    assert (shown.rows_per_s, shown.eta_s) == (told.rows_per_s, told.eta_s)
    assert shown.total_estimated
    leases.beat(claimed, replace(progress(JobState.STARTING), rate=0.0), 30)  # of the next driver
    assert jobs.run(run.id).jobs[0].eta_s is None


def test_progress_of_a_job_that_is_taken_over_never_goes_backwards(jobs: Store):
    leases = Leases(jobs.database)
    run, claimed = running(jobs)

    def shown() -> tuple[int, int | None, int]:
        [job] = jobs.run(run.id).jobs
        return job.rows_computed, job.rows_total, job.fragments_done

    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    fresh = recorder._fresh(FragmentPlan(0, 9, Action.COMPUTE, "missing", 9), TaskState.COMMITTED)
    done = fresh | {"column": "y", "rows_computed": 10}
    report(jobs.database, claimed, News(tasks=[done]))
    planned = progress(rows_total=40, fragments_total=4)
    leases.stop(claimed, replace(planned, rows_computed=26, fragments_done=2))
    jobs.want(run.id, Wanted.PAUSE)
    [held] = leases.held()
    assert leases.bury(held, "it is gone") is JobState.PAUSED
    assert shown() == (26, 40, 2)
    jobs.want(run.id, Wanted.RUN)
    [claimed] = claim(jobs.database, this_process())
    leases.attach(claimed, this_process(), 30)
    leases.beat(claimed, progress(JobState.STARTING), 30)  # nothing is planned yet
    assert shown() == (26, 40, 2)
    assert jobs.run(run.id).jobs[0].eta_s is None
    report(jobs.database, claimed, News(first_plan=True, mine=frozenset({("y", 1)})))
    planned = progress(rows_total=30, fragments_total=3)
    for here, there in ((0, 26), (16, 26), (17, 27)):
        leases.beat(claimed, replace(planned, rows_computed=here), 30)
        assert shown() == (there, 40, 2)
    leases.finish(claimed, replace(planned, rows_computed=12), JobState.SUCCEEDED)
    assert shown() == (22, 40, 1)  # at the end, what it came to: others have filled the rest


def test_pause_that_is_taken_back_while_the_driver_stops(jobs: Store):
    run, claimed = running(jobs)
    leases = Leases(jobs.database)
    leases.beat(claimed, progress(), 30)
    jobs.want(run.id, Wanted.PAUSE)
    leases.beat(claimed, progress(JobState.CANCELLING), 30)
    assert jobs.run(run.id).state is JobState.PAUSING
    jobs.want(run.id, Wanted.RUN)
    leases.beat(claimed, progress(JobState.CANCELLING), 30)
    leases.stop(claimed, progress(JobState.CANCELLED))
    [held] = leases.held()
    assert leases.bury(held, "it is gone") is JobState.QUEUED
    assert [c.job_id for c in claim(jobs.database, this_process())] == [claimed.job_id]


@pytest.mark.parametrize("wanted", [Wanted.PAUSE, Wanted.CANCEL])
def test_driver_that_dies_while_it_winds_up_after_a_failure(jobs: Store, wanted: Wanted):
    run, claimed = running(jobs)
    leases = Leases(jobs.database)
    leases.beat(claimed, progress(JobState.CANCELLING), 30)
    jobs.want(run.id, wanted)
    leases.give_back(claimed, progress(), "the disk is full")
    [held] = leases.held()
    ended = {Wanted.PAUSE: JobState.PAUSED, Wanted.CANCEL: JobState.CANCELLED}[wanted]
    assert leases.bury(held, "it is gone") is ended


def test_call_that_ends_before_it_said_that_it_was_resumed(jobs: Store):
    claimed = jobs.begin_direct(ASKED, "t", ["y"], this_process(), 30, "job")
    leases = Leases(jobs.database)
    leases.beat(claimed, progress(JobState.PAUSED), 30)
    leases.finish(claimed, progress(JobState.SUCCEEDED), JobState.SUCCEEDED)
    assert jobs.job("job").state is JobState.SUCCEEDED


def test_text_that_no_database_takes_does_not_keep_a_driver_from_beating(jobs: Store):
    run, claimed = running(jobs)
    recorder = StoreRecorder(jobs, claimed, scheduled=True)
    text = "a file named \udcff holds a \0"
    recorder._failures([Failure(0, 1, 1, "OSError", text, text, 1, text)])
    recorder._control = Control(claimed.job_id, ("y",), None)
    assert recorder._beat() is Wanted.RUN
    [failure] = jobs.failures(claimed.job_id).items
    assert failure.message == "a file named \ufffd holds a \ufffd"
    facts = {"error": text, "error_type": "OSError"}
    Leases(jobs.database).finish(claimed, progress(), JobState.FAILED, text, facts)
    assert jobs.run(run.id).reason == failure.message


def test_only_what_ended_is_forgotten(jobs: Store):
    run, claimed = running(jobs)
    with pytest.raises(JobStateError, match="cancel it before"):
        jobs.delete(run.id)
    jobs.forget(0)
    report(jobs.database, claimed, News(events=[("planned", "", {})]))
    Leases(jobs.database).finish(claimed, progress(), JobState.SUCCEEDED)
    other = submit(jobs, column="z")
    jobs.forget(3600)
    assert jobs.unknown([run.jobs[0].id]) == []
    jobs.forget(-1)
    assert jobs.unknown([run.jobs[0].id, other.jobs[0].id]) == [run.jobs[0].id]
    assert [r.id for r in jobs.runs(Wish()).items] == [other.id]
    with jobs.database.read() as session:
        for table in ("jobs", "events"):
            found = session.execute(text(f"SELECT DISTINCT run_id FROM {table}"))
            assert [*found.scalars()] == ([other.id])


def test_pages_hold_every_run_once(jobs: Store):
    runs = [submit(jobs, column=f"c{k}", priority=k % 3 - 1, name="ab"[k % 2]) for k in range(7)]
    lists = jobs
    keys = {
        "created": [r.id for r in runs],
        "priority": [r.id for r in sorted(runs, key=lambda r: (r.priority, r.id))],
        "name": [r.id for r in sorted(runs, key=lambda r: (r.name, r.id))],
    }
    downwards = {f"-{name}": ids[::-1] for name, ids in keys.items()}
    for sort, expected in (keys | downwards).items():
        seen: list[str] = []
        cursor = None
        while True:
            page = lists.runs(Wish(sort=sort, limit=3, cursor=cursor))
            seen += [r.id for r in page.items]
            if (cursor := page.next) is None:
                break
        assert seen == expected
    with pytest.raises(SettingError, match="begin again"):
        lists.runs(Wish(cursor="nonsense"))
    with pytest.raises(SettingError, match="jobs cannot be sorted by name"):
        lists.jobs(Wish(sort="name"))
    urgent = lists.jobs(Wish(sort="-priority", limit=1))
    assert [j.priority for j in urgent.items] == [1]


def test_events_of_a_run_have_no_gaps(jobs: Store):
    run, claimed = running(jobs)
    Leases(jobs.database).beat(claimed, progress(), 30)
    jobs.change(run.id, priority=9)
    events = jobs.events(run.id).items
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    later = jobs.events(run.id, after=2).items
    assert later == events[2:]
    assert jobs.run(run.id).jobs[0].priority == 9
